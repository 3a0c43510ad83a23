# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The quick import of torch and torchvision leaves both as they are without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUICK = "import lsst.meas.maskrcnn.network.torch_import as quick, gc, sys, torch, torchvision"


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a Python of their own."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300, check=False
    )


def test_the_compiler_is_imported_when_it_is_wanted() -> None:
    """The function that torchvision has taken, and the compiler, are the real ones when they are called."""
    done = run(
        QUICK,
        "assert gc.isenabled() and gc.get_freeze_count() < 1000",
        "assert not [name for name in sys.modules if name.startswith(('torch._dynamo', 'sympy'))]",
        "supported = sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')",
        "from torch._dynamo.utils import is_compile_supported",
        "assert supported is is_compile_supported('cpu')",
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2.0, 2.0]",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "import torch._dynamo as used; used.config",
        "torch._dynamo.config",
        "import torch._dynamo.utils as used; used.counters",
        "from torch._dynamo.eval_frame import OptimizedModule",
        "import torch._dynamo.bytecode_analysis",
    ],
)
def test_what_is_used_while_torchvision_is_imported(use: str) -> None:
    """Another version of torchvision may use more of the compiler than one function."""
    done = run(
        QUICK,
        "for name in quick._COMPILER:",
        "    sys.modules[name] = quick._Placeholder(name)",
        use,
        "assert all(sys.modules[name].__file__ for name in quick._COMPILER if name in sys.modules)",
        "assert not any(isinstance(module, quick._Placeholder) for module in list(sys.modules.values()))",
    )
    assert done.returncode == 0, done.stderr


def test_what_was_imported_before_stays() -> None:
    """The compiler and the state of the collection of garbage are those of the program."""
    done = run(
        "import gc, torch._dynamo, sys",
        "gc.freeze()",
        "frozen = gc.get_freeze_count()",
        "gc.disable()",
        "before = torch._dynamo",
        QUICK,
        "assert sys.modules['torch._dynamo'] is before and not gc.isenabled()",
        "gc.enable()",
        "with quick._without_collection():",
        "    pass",
        "assert gc.isenabled() and gc.get_freeze_count() > frozen // 2",
    )
    assert done.returncode == 0, done.stderr
