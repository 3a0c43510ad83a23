# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Formatter of everything that has ``readFits`` and ``writeFits``."""

from __future__ import annotations

__all__ = ["FitsGenericFormatter"]

from typing import TYPE_CHECKING, Any

from lsst.daf.butler import FormatterV2

from ..utils import add_provenance_to_fits_header

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetProvenance
    from lsst.resources import ResourcePath


class FitsGenericFormatter(FormatterV2):
    """Formatter of everything that has ``readFits`` and ``writeFits``."""

    supported_extensions = frozenset({".fits", ".fits.gz", ".fits.fz", ".fz", ".fit"})
    default_extension = ".fits"
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read an object.

        Parameters
        ----------
        path : `str`
            Name of the file.
        component : `str`, optional
            Not used.
        expected_size : `int`, optional
            Not used.

        Returns
        -------
        dataset : `object`
            The object.
        """
        pytype: Any = self.file_descriptor.storageClass.pytype
        parameters = self.file_descriptor.parameters
        if parameters and hasattr(pytype, "readFitsWithOptions"):
            return pytype.readFitsWithOptions(path, options=parameters)
        return pytype.readFits(path)

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write an object.

        Parameters
        ----------
        in_memory_dataset : `object`
            The object.
        uri : `lsst.resources.ResourcePath`
            The file.
        """
        in_memory_dataset.writeFits(uri.ospath)

    def add_provenance(
        self, in_memory_dataset: Any, /, *, provenance: DatasetProvenance | None = None
    ) -> Any:
        """Write provenance to the metadata of an object that has them.

        Parameters
        ----------
        in_memory_dataset : `object`
            The object.
        provenance : `lsst.daf.butler.DatasetProvenance`, optional
            Where it came from.

        Returns
        -------
        dataset : `object`
            The same object.
        """
        if hasattr(in_memory_dataset, "getMetadata"):
            metadata = in_memory_dataset.getMetadata()
        else:
            metadata = getattr(in_memory_dataset, "metadata", None)
        # Some of these objects are written by astropy, of which older
        # versions have no long HIERARCH strings.
        add_provenance_to_fits_header(metadata, self.dataset_ref, provenance, allow_long_headers=False)
        return in_memory_dataset
