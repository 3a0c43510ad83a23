"""Sphinx configuration for a single-package documentation build."""

from documenteer.conf.pipelinespkg import *  # noqa: F403

project = "meas_maskrcnn"
html_theme_options["logotext"] = project  # noqa: F405
html_title = project
html_short_title = project
