# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing of images, masks, masked images and exposures to FITS."""

from __future__ import annotations

__all__ = ["write_exposure", "write_masked_image", "write_single"]

from typing import TYPE_CHECKING, Any

from astropy.io import fits

from lsst.afw.fits._fits import STANDARD_COMMENTS, append_cards, quiet_cards, to_cards, write_hdus
from lsst.afw.fits._pixels import make_image_hdu
from lsst.daf.base import PropertyList
from lsst.pex.exceptions import RuntimeError

from ._mask import MaskX
from ._readers import SERIALIZATION_KEY, SERIALIZATION_VERSION
from ._visitInfo import setVisitInfoMetadata

if TYPE_CHECKING:
    from lsst.geom import Box2I

    from ._exposureInfo import ExposureInfo

_PLANES = ("IMAGE", "MASK", "VARIANCE")


def _position_cards(x0: int, y0: int) -> PropertyList:
    """Return the keys that hold the parent position of the first pixel."""
    keys = PropertyList()
    for axis in (1, 2):
        keys.set(f"CTYPE{axis}A", "LINEAR", comment="Type of projection")
    for axis, name in ((1, "Column"), (2, "Row")):
        keys.set(f"CRPIX{axis}A", 1.0, comment=f"{name} Pixel Coordinate of Reference")
    for axis, name, value in ((1, "Column", x0), (2, "Row", y0)):
        keys.set(f"CRVAL{axis}A", float(value), comment=f"{name} pixel of Reference Pixel")
    for axis, name in ((1, "Column"), (2, "Row")):
        keys.set(f"CUNIT{axis}A", "PIXEL", comment=f"{name} unit")
    return keys


def _plane_hdu(plane: Any, metadata: Any, options: Any, primary: bool = False) -> Any:
    """Make the HDU of an image or mask.

    Parameters
    ----------
    plane : `Image` or `MaskX`
        The pixels.
    metadata : `lsst.daf.base.PropertySet` or `None`
        Header keys.
    options : `lsst.afw.fits.CompressionOptions` or `None`
        How to compress.
    primary : `bool`, optional
        Whether the HDU is the first of a file.

    Returns
    -------
    hdu : `astropy.io.fits.ImageHDU` or `astropy.io.fits.CompImageHDU`
        The HDU.
    """
    header = PropertyList() if metadata is None else metadata.deepCopy()
    if isinstance(plane, MaskX):
        MaskX.addMaskPlanesToMetadata(header)
    header.combine(_position_cards(plane.getX0(), plane.getY0()))
    return make_image_hdu(plane.array, to_cards(header), options, primary)


def _primary_hdu(metadata: Any) -> fits.PrimaryHDU:
    """Make an empty primary HDU with header keys."""
    hdu = fits.PrimaryHDU()
    for line in STANDARD_COMMENTS:
        hdu.header.add_comment(line)
    if metadata is not None:
        header = metadata.deepCopy()
        # Merged headers of a read file name the HDU that they came from.
        if header.exists("EXTNAME"):
            header.remove("EXTNAME")
        append_cards(hdu.header, to_cards(header))
    return hdu


def write_single(plane: Any, destination: Any, options: Any, mode: str, metadata: Any) -> None:
    """Write an image or a mask to a FITS file.

    Parameters
    ----------
    plane : `Image` or `MaskX`
        What to write.
    destination : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    options : `lsst.afw.fits.CompressionOptions` or `None`
        How to compress.
    mode : `str`
        "w" replaces the file, "a" appends to it.
    metadata : `lsst.daf.base.PropertySet` or `None`
        Header keys.
    """
    with quiet_cards():
        new = mode.startswith("w")
        compressed = options is not None and plane.array.size > 0
        hdus = [_plane_hdu(plane, metadata, options, primary=new and not compressed)]
        if new and compressed:
            hdus.insert(0, _primary_hdu(None))
        write_hdus(hdus, destination, mode)


def _masked_image_hdus(image: Any, options: Any, metadata: Any, plane_metadata: Any) -> list[Any]:
    """Make the four HDUs of a masked image."""
    hdus = [_primary_hdu(metadata)]
    planes = (image.image, image.mask, image.variance)
    for name, plane, option, keys in zip(_PLANES, planes, options, plane_metadata, strict=True):
        header = PropertyList() if keys is None else keys.deepCopy()
        header.set("INHERIT", True)
        header.set("EXTTYPE", name)
        header.set("EXTNAME", name)
        hdus.append(_plane_hdu(plane, header, option))
    return hdus


def write_masked_image(
    image: Any, destination: Any, options: Any, metadata: Any, plane_metadata: Any
) -> None:
    """Write a masked image to a FITS file.

    Parameters
    ----------
    image : `MaskedImage`
        What to write.
    destination : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    options : `tuple`
        `lsst.afw.fits.CompressionOptions` or `None` for each plane.
    metadata : `lsst.daf.base.PropertySet` or `None`
        Keys of the primary HDU.
    plane_metadata : `tuple`
        Keys of each plane.
    """
    with quiet_cards():
        write_hdus(_masked_image_hdus(image, options, metadata, plane_metadata), destination)


def _exposure_headers(
    info: ExposureInfo, bbox: Box2I, archive: Any
) -> tuple[PropertyList, list[PropertyList]]:
    """Fill an archive and make the headers that point into it.

    Parameters
    ----------
    info : `ExposureInfo`
        What to write.
    bbox : `lsst.geom.Box2I`
        Box of the pixels.
    archive : `lsst.afw.table.io.OutputArchive`
        Archive to fill.

    Returns
    -------
    primary : `lsst.daf.base.PropertyList`
        Keys of the primary HDU.
    planes : `list` [`lsst.daf.base.PropertyList`]
        Keys of the image, mask and variance HDUs.
    """
    primary = PropertyList()
    primary.combine(info.getMetadata())
    primary.set(SERIALIZATION_KEY, SERIALIZATION_VERSION)
    primary.set("AR_HDU", 5, comment="HDU (1-indexed) containing the archive used to store ancillary objects")
    for key, component in info._iterate():
        if not component.isPersistable():
            continue
        comment = f"archive ID for generic component '{key}'"
        archive_id = archive.put(component)
        # The first key is for older readers.
        primary.set(f"{key}_ID", archive_id, comment=comment)
        primary.set(f"ARCHIVE_ID_{key}", archive_id, comment=comment)

    image = PropertyList()
    wcs = info.getWcs()
    if wcs is not None:
        try:
            image.combine(_local_wcs_metadata(wcs, bbox))
        except RuntimeError:
            # The WCS has no FITS form; the archive holds it.
            pass
    image.set("LTV1", float(-bbox.getBeginX()))
    image.set("LTV2", float(-bbox.getBeginY()))
    detector = info.getComponent(info.KEY_DETECTOR)
    if detector is not None:
        primary.set("DETNAME", detector.getName())
        primary.set("DETSER", detector.getSerial())
    visit_info = info.getVisitInfo()
    if visit_info is not None:
        setVisitInfoMetadata(primary, visit_info)
    exposure_id = info.getId()
    if exposure_id is not None:
        primary.set("EXPID", exposure_id)

    planes = [image, image.deepCopy(), image.deepCopy()]
    if primary.exists("BUNIT"):
        # Units belong to the pixels' HDUs.
        if not primary.isUndefined("BUNIT"):
            unit = str(primary.getScalar("BUNIT"))
            planes[0].set("BUNIT", unit, comment="Image Data units")
            planes[1].set("BUNIT", None, comment="Mask Data units")
            planes[2].set("BUNIT", f"{unit}**2", comment="Variance Data units")
        primary.remove("BUNIT")
    return primary, planes


def _local_wcs_metadata(wcs: Any, bbox: Box2I) -> PropertyList:
    """Return the FITS keys of a WCS for pixels counted from a box's corner."""
    from lsst.geom import Extent2D

    local = wcs.copyAtShiftedPixelOrigin(Extent2D(-bbox.getMinX(), -bbox.getMinY()))
    return local.getFitsMetadata(False)


def write_exposure(exposure: Any, destination: Any, options: Any) -> None:
    """Write an exposure to a FITS file.

    Parameters
    ----------
    exposure : `Exposure`
        What to write.
    destination : `str` or `lsst.afw.fits.MemFileManager`
        The file.
    options : `tuple`
        `lsst.afw.fits.CompressionOptions` or `None` for each plane.
    """
    from lsst.afw.table.io import OutputArchive

    archive = OutputArchive()
    with quiet_cards():
        primary, planes = _exposure_headers(exposure.getInfo(), exposure.getBBox(), archive)
        hdus = _masked_image_hdus(exposure.getMaskedImage(), options, primary, planes)
        hdus.extend(archive.to_hdus())
        write_hdus(hdus, destination)
