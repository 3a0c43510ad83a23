# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Shared by bin/demo and bin/runtests, which source it: finds a Python, makes the environment .venv in the project, and
# leaves its interpreter in $venv_python. Plain POSIX sh. Expects $project (root of the checkout) and $me (a name for
# messages).

MIN_FREE_GB=12
venv="$project/.venv"
lock="$project/.venv.lock"
started=$(date +%s)
heartbeat_pid=
locked=

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$me" "$*" >&2
    exit 1
}

elapsed() { printf '%s' "$(($(date +%s) - started)) s"; }

step() { printf '[%s] %s\n' "$(elapsed)" "$*"; }

clean_up() {
    if [ -n "$heartbeat_pid" ]; then kill "$heartbeat_pid" 2>/dev/null || :; fi
    heartbeat_pid=
    if [ -n "$locked" ]; then rm -rf "$lock"; fi
    locked=
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Python is called with -P (3.11 and newer) throughout: a file in the current folder that has the name of a module must
# not be taken for it.

# Is $1 a Python that will do? Prints its version; says why not on stderr otherwise.
python_is_new() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# An environment can be made with the venv module and either ensurepip or a pip that installs into other environments.
python_has_venv() { "$1" -P -c 'import venv' >/dev/null 2>&1 && { python_has_ensurepip "$1" || python_has_pip "$1"; }; }
python_has_ensurepip() { "$1" -P -c 'import ensurepip' >/dev/null 2>&1; }
python_has_pip() {
    "$1" -P -c 'import pip, sys; sys.exit(tuple(int(n) for n in pip.__version__.split(".")[:2]) < (22, 3))' >/dev/null 2>&1
}

# Does $1 see the real lsst.afw, not that of standin/?
python_has_real_afw() {
    "$1" -P - "$project/standin/python" <<'EOF' >/dev/null 2>&1
import sys
sys.path.append(sys.argv[1])
from meas_maskrcnn_standin import find_real_afw
import os
paths = [p for p in sys.path if os.path.realpath(p) != os.path.realpath(sys.argv[1])]
sys.exit(find_real_afw(paths, os.environ.get("AFW_DIR")) is None)
EOF
}

# The Python to use: $PYTHON; or the one that sees the Science Pipelines; or the newest that is supported and can make
# an environment. Sets $python, $version, $real_afw, and $why for the user.
find_python() {
    python=
    real_afw=
    seen=
    no_venv=
    best=-1
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python; fi
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if ! found=$(python_is_new "$candidate"); then
            if [ -n "$found" ]; then seen="$seen${seen:+, }$candidate is $found"; fi
            continue
        fi
        if python_has_real_afw "$candidate"; then
            python=$candidate version=$found real_afw=1
            return 0
        fi
        if ! python_has_venv "$candidate"; then
            no_venv="$candidate ($found)"
            continue
        fi
        # Newer than what the package is tested on comes last.
        case $found in 3.11.*) rank=1 ;; 3.12.*) rank=2 ;; 3.13.*) rank=3 ;; *) rank=0 ;; esac
        if [ "$rank" -gt "$best" ]; then python=$candidate version=$found best=$rank; fi
    done
    if [ -n "$python" ]; then
        why='the newest here of 3.13, 3.12, 3.11'
        if [ "$best" = 0 ]; then why='newer than those tested, 3.11 to 3.13'; fi
        if [ -n "${PYTHON:-}" ]; then why='as PYTHON says'; fi
        if [ "$best" = 1 ]; then why="$why; cell coadds of Rubin need 3.12"; fi
        return 0
    fi
    if [ -n "$no_venv" ]; then
        die "the Python $no_venv has no working venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again."
    fi
    if [ -n "${PYTHON:-}" ]; then
        die "needs Python 3.11 or newer, but PYTHON=$PYTHON ${seen:+(}${seen:-does not run}${seen:+)}; set PYTHON to another one."
    fi
    die "needs Python 3.11 or newer, found ${seen:-none}; install one (Debian 12: apt install python3 python3-venv) or set PYTHON=/path/to/python3."
}

# What the environment was made from; another answer means it has to be brought up to date.
environment_key() {
    "$1" -P - "$project" <<'EOF'
import hashlib, os, platform, sys
root = sys.argv[1]
digest = hashlib.sha256()
for name in ("pyproject.toml", os.path.join("standin", "pyproject.toml")):
    with open(os.path.join(root, name), "rb") as stream:
        digest.update(stream.read())
# Editable installations and scripts hold the absolute path.
digest.update(repr((os.path.realpath(root), sys.version_info[:2], platform.machine())).encode())
print(digest.hexdigest())
EOF
}

take_lock() {
    waited=
    until mkdir "$lock" 2>/dev/null; do
        [ -d "$lock" ] || die "cannot write to $project: permission denied; use a checkout that you may write to."
        owner=$(cat "$lock/pid" 2>/dev/null || :)
        # A lock without a number is being taken right now, or was left by a crash a moment after it was made.
        if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
            rm -rf "$lock"
            continue
        fi
        if [ -z "$owner" ] && [ "${waited:-0}" -ge 10 ]; then
            rm -rf "$lock"
            continue
        fi
        [ -n "$waited" ] || say "Waiting for another bin/demo or bin/runtests that installs into .venv ..."
        waited=$((${waited:-0} + 2))
        sleep 2
    done
    locked=1
    printf '%s\n' "$$" >"$lock/pid"
}

drop_lock() {
    rm -rf "$lock"
    locked=
}

# Something to see while pip unpacks files without a word.
start_heartbeat() {
    (
        trap 'exit 0' TERM
        seconds=0
        while sleep 20 >/dev/null 2>&1; do
            seconds=$((seconds + 20))
            size=$(du -sm "$venv" 2>/dev/null | cut -f1)
            printf '    ... still installing: %s s, %s MB of about 6000 there\n' "$seconds" "${size:-?}"
        done
    ) &
    heartbeat_pid=$!
}

stop_heartbeat() {
    kill "$heartbeat_pid" 2>/dev/null || :
    wait "$heartbeat_pid" 2>/dev/null || :
    heartbeat_pid=
}

free_gb() { "$python" -P -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free // 10**9)' "$1"; }

# One line from the log of a pip that failed.
pip_failure() {
    if grep -Eqi 'No space left on device|Disk quota exceeded' "$venv/pip.log" 2>/dev/null; then
        die "the disk became full while packages were installed; free $MIN_FREE_GB GB in $project and run this again."
    fi
    if grep -Eqi 'NewConnectionError|Name or service not known|name resolution|ConnectTimeout|Read timed out|ProxyError|Network is unreachable|Connection refused|ConnectionResetError|SSLError' "$venv/pip.log" 2>/dev/null; then
        die "no network: pip cannot reach its package index. Check the connection (or PIP_INDEX_URL, https_proxy) and run this again."
    fi
    reason=$(grep -E 'ERROR: ' "$venv/pip.log" 2>/dev/null | tail -n 1 | sed 's/.*ERROR: //' | cut -c 1-300)
    die "installation failed: ${reason:-pip gave no reason}. The whole story is in $venv/pip.log; run this again to retry."
}

run_pip() { "$venv/bin/python" -P -m pip --disable-pip-version-check "$@"; }

install_packages() {
    : >"$venv/installing"
    rm -f "$venv"/installed.* "$venv/pip.log"

    step "asking the package index"
    mkdir -p "$venv/tmp"
    if ! run_pip download --quiet --log "$venv/pip.log" --retries 1 --timeout 30 --no-deps --dest "$venv/tmp" \
        lsst-utils >/dev/null 2>&1; then
        pip_failure
    fi

    # Without what cell coadds need on Python 3.11, where there is no lsst-images.
    if [ "$1" = test ]; then extra='[rubin,test]'; else extra='[all,rubin]'; fi
    step "installing packages; torch is large, so this takes some minutes on the first run"
    start_heartbeat
    # Bytecode is made on first import; to compile all of torch beforehand would take longer than that saves.
    if ! run_pip install --no-compile --log "$venv/pip.log" \
        --editable "$project$extra" --editable "$project/standin"; then
        stop_heartbeat
        pip_failure
    fi
    stop_heartbeat
    check_torch
    rm -rf "$venv/tmp" "$venv/installing"
    environment_key "$venv/bin/python" >"$venv/installed.demo"
    if [ "$1" = test ]; then cp "$venv/installed.demo" "$venv/installed.test"; fi
    step "installed"
}

torch_works() {
    "$venv/bin/python" -P -c 'import torch, torchvision
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
torchvision.ops.nms(boxes, torch.ones(1), 0.5)' >>"$venv/pip.log" 2>&1
}

# A CPU-only torch beside a torchvision of the CUDA build does not load its operators.
check_torch() {
    step "checking that torch and torchvision fit each other"
    if torch_works; then return 0; fi
    version=$("$venv/bin/python" -P -c 'from importlib.metadata import version; print(version("torch").split("+")[0])' 2>/dev/null || :)
    step "torch ${version:-?} and the torchvision found for it do not work together; trying another pair"
    if ! run_pip install --no-compile --upgrade --log "$venv/pip.log" "torch${version:+!=$version}" torchvision; then
        pip_failure
    fi
    torch_works || die "torch and torchvision do not work together in $venv (see the end of pip.log there); install a matching pair into it, or set PIP_INDEX_URL to an index that has one."
}

# Make or repair the environment. Argument: demo or test.
ensure_environment() {
    # Settings that would send pip's work elsewhere.
    unset PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME || :
    export PIP_USER=0 PIP_NO_INPUT=1

    # Quick way: everything is there.
    if environment_is_ready "$1"; then
        unset PYTHONPATH || :
        venv_python="$venv/bin/python"
        return 0
    fi

    find_python
    if [ -n "$real_afw" ]; then
        use_science_pipelines "$1"
        return 0
    fi
    unset PYTHONPATH || :
    step "Python $version ($(command -v "$python")), $why; the environment goes to $venv"
    take_lock
    # Another process may have done the work meanwhile.
    if ! environment_is_ready "$1"; then
        make_environment "$1"
    fi
    drop_lock
    venv_python="$venv/bin/python"
}

environment_is_ready() {
    [ -f "$venv/installed.$1" ] && [ ! -e "$venv/installing" ] || return 1
    key=$(environment_key "$venv/bin/python" 2>/dev/null) || return 1
    [ "$key" = "$(cat "$venv/installed.$1")" ] || return 1
    # Where the Science Pipelines were set up since, they are to be used.
    ! python_has_real_afw "${PYTHON:-python3}"
}

make_environment() {
    if [ -e "$venv" ] || [ -L "$venv" ]; then
        if [ ! -e "$venv/made-by-meas_maskrcnn" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
            aside="$venv.$(date +%Y%m%dT%H%M%S)"
            say "There is a .venv that this script did not make; it is kept as $aside"
            mv "$venv" "$aside"
        elif [ -e "$venv/installing" ] || ! "$venv/bin/python" -P -m pip --version >/dev/null 2>&1 ||
            [ "$("$venv/bin/python" -c 'import sys; print(sys.version_info[:2])')" != "$("$python" -c 'import sys; print(sys.version_info[:2])')" ]; then
            say "An earlier try was cut short, or Python has changed: making .venv anew"
            rm -rf "$venv"
        fi
    fi
    if [ ! -e "$venv/made-by-meas_maskrcnn" ] || [ ! -e "$venv/installed.demo" ]; then
        free=$(free_gb "$project")
        [ "$free" -ge "$MIN_FREE_GB" ] ||
            die "needs $MIN_FREE_GB GB of free disk for the packages (torch is large), but $project has $free GB; free some or use a checkout on another disk."
    fi
    if [ ! -e "$venv/made-by-meas_maskrcnn" ]; then
        mkdir -p "$venv"
        : >"$venv/made-by-meas_maskrcnn"
        : >"$venv/installing"
        if python_has_ensurepip "$python"; then
            "$python" -P -m venv "$venv" >"$venv/pip.log" 2>&1 ||
                die "Python's venv module failed: $(tail -n 1 "$venv/pip.log"); on Debian or Ubuntu: apt install python3-venv"
        else
            "$python" -P -m venv --without-pip "$venv" >"$venv/pip.log" 2>&1 ||
                die "Python's venv module failed: $(tail -n 1 "$venv/pip.log"); on Debian or Ubuntu: apt install python3-venv"
            "$python" -P -m pip --python "$venv/bin/python" --disable-pip-version-check install --quiet \
                --log "$venv/pip.log" --retries 1 --timeout 30 pip >/dev/null 2>&1 || pip_failure
        fi
    fi
    # pip unpacks gigabytes into the folder for temporary files, which can be a small one in memory.
    if [ "$(free_gb "${TMPDIR:-/tmp}")" -lt 6 ]; then
        mkdir -p "$venv/tmp"
        TMPDIR="$venv/tmp" install_packages "$1"
    else
        install_packages "$1"
    fi
}

# With the Science Pipelines set up, their Python is used as it is, and standin/ stays away.
use_science_pipelines() {
    step "Python $version sees the LSST Science Pipelines: using them, nothing is installed"
    MEAS_MASKRCNN_DIR="$project"
    PYTHONPATH="$project/python${PYTHONPATH:+:$PYTHONPATH}"
    export MEAS_MASKRCNN_DIR PYTHONPATH
    modules='torch torchvision safetensors galsim matplotlib tqdm click lsst.ctrl.mpexec'
    if [ "$1" = test ]; then modules="$modules pytest xdist pytest_cov ruff mypy"; fi
    missing=$("$python" -P - $modules <<'EOF'
import importlib.util, sys


def is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


print(" ".join(name for name in sys.argv[1:] if not is_there(name)))
EOF
    )
    [ -z "$missing" ] || die "the Python of the Science Pipelines lacks: $missing; install them into that environment (conda install or pip install) and run this again."
    venv_python=$(command -v "$python")
}
