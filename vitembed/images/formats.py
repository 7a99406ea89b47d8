"""Which image format a file holds, told by its first bytes and never by its name.

Raster formats that Pillow decodes in-process are named, and pictures that are not read here (``REFUSED``: drawings,
documents, instruments' own files), so that these are listed with a reason. Video and other data (HDF5, GRIB, BUFR) are
no images. TGA and a few old formats have no magic bytes: they are believed only under their suffix. Many cameras' RAW
files begin as any TIFF does, and are told from it by suffix: read as TIFF they would give a thumbnail, or noise.
"""
# ruff: noqa: PTH122

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import BinaryIO

from vitembed.errors import BadImage

HEAD_BYTES = 512
"""How much of a file is read to tell its format."""

IMAGE_SUFFIXES = frozenset(
    """
    .jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .avifs .gif .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .pfm .ico
    .cur .jp2 .j2k .jpc .jpf .jpx .jpm .mj2 .icns .qoi .tga .icb .vda .vst .dds .pcx .dcx .sgi .rgb .rgba .bw .ras .psd
    .xbm .xpm .blp .ftc .ftu .msp .fits .fit .heic .heif .hif .jxl .dng .nef .nrw .arw .sr2 .cr2 .cr3 .raf .orf .rw2
    .pef .srw .x3f .3fr .iiq .rwl .fli .flc .gbr .im .imt .pcd .pxr .spider .spi .j2c .jps .pns .lsm .svs .ndpi .stk
    .btf .tf8 .eps .ps .ai .pdf .svg .svgz .wmf .emf .fpx .mic .palm .psp .pspimage .xcf .kra .exr .hdr .jxr .wdp .hdp
    .djvu .djv .flif .bpg .ktx .dcm .dicom .czi .nd2 .lif .oib .oir .vsi
    """.split()  # noqa: SIM905
)
"""Lower-case suffixes by which a name claims to be an image; such a file without image content is a bad image."""

_CONVERT = "convert it to PNG"
_EXPORT = "export it as TIFF or PNG"
REFUSED = {
    "EPS": f"EPS: a PostScript drawing; {_CONVERT}",
    "PDF": f"PDF: a document; {_CONVERT}",
    "SVG": f"SVG: a drawing, not pixels; {_CONVERT}",
    "WMF": f"WMF or EMF: a drawing, not pixels; {_CONVERT}",
    "PALM": f"PALM: not read here; {_CONVERT}",
    "FPX": f"FPX or MIC: not read here; {_CONVERT}",
    "PSP": f"PSP: a PaintShop file; {_CONVERT}",
    "XCF": f"XCF: a GIMP file; {_CONVERT}",
    "KRA": f"KRA: a Krita file; {_CONVERT}",
    "EXR": f"EXR: high dynamic range; {_CONVERT}",
    "HDR": f"HDR: high dynamic range; {_CONVERT}",
    "JXR": f"JXR: JPEG XR, not read here; {_CONVERT}",
    "DJVU": f"DJVU: a document; {_CONVERT}",
    "FLIF": f"FLIF: not read here; {_CONVERT}",
    "BPG": f"BPG: not read here; {_CONVERT}",
    "KTX": f"KTX: a texture; {_CONVERT}",
    "DICOM": f"DICOM: a medical image; {_EXPORT}",
    "CZI": f"CZI: a microscope's file; {_EXPORT}",
    "ND2": f"ND2: a microscope's file; {_EXPORT}",
    "LIF": f"LIF: a microscope's file; {_EXPORT}",
    "OIB": f"OIB, OIR or VSI: a microscope's file; {_EXPORT}",
}
"""Pictures that are not read here: the reason by the name that ``sniff`` gives."""
_BY_SUFFIX = {
    **{".svgz": "SVG", ".fpx": "FPX", ".mic": "FPX", ".palm": "PALM", ".kra": "KRA", ".lif": "LIF", ".ai": "EPS"},
    **{".oib": "OIB", ".oir": "OIB", ".vsi": "OIB", ".pspimage": "PSP", ".wmf": "WMF", ".dcm": "DICOM"},
    **{".im": "IM", ".imt": "IMT", ".pcd": "PCD", ".spider": "SPIDER", ".spi": "SPIDER", ".gbr": "GBR"},
}
"""Formats without a beginning of their own: of files that are none of the others."""
_RAW_SUFFIXES = frozenset({".dng", ".nef", ".nrw", ".arw", ".sr2", ".cr2", ".pef", ".srw", ".3fr", ".iiq", ".rwl"})
"""Of RAW files that are TIFF by their first bytes."""
_TGA_SUFFIXES = frozenset({".tga", ".icb", ".vda", ".vst"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def claims_image(path: str) -> bool:
    """Whether the file's suffix says that it is an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a named pipe would.

    Raises:
        BadImage: If the file is gone, unreadable or not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise BadImage(path, explain_os_error(error)) from error
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:
        os.close(descriptor)
        raise BadImage(path, explain_os_error(error)) from error
    if not regular:
        os.close(descriptor)
        raise BadImage(path, "not a regular file")
    return os.fdopen(descriptor, "rb")


def explain_os_error(error: OSError | ValueError) -> str:
    """One short phrase for a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror.lower()})"
    return "cannot be read"


def sniff(path: str) -> str | None:
    """Pillow's name of the format that the file holds ("JPEG", "PNG", "HEIF", ...), or None if it is no image.

    Raises:
        BadImage: If the file cannot be read or has zero bytes.
    """
    with open_regular(path) as file:
        return sniff_file(file, path)


def not_an_image(path: str) -> str:
    """Name what is wrong with a file of no image format; vectors are known as such."""
    from vitembed.vector_files import vector_format

    kind = vector_format(path)
    return "not an image" if kind is None else f"not an image, but a file of vectors ({kind})"


def sniff_file(file: BinaryIO, path: str) -> str | None:
    """As ``sniff``, of an open file; leaves it rewound to its start."""
    try:
        head = file.read(HEAD_BYTES)
        file.seek(0)
    except OSError as error:
        raise BadImage(path, explain_os_error(error)) from error
    if not head:
        raise BadImage(path, "zero bytes")
    name = format_of(head)
    if name == "TIFF" and (head[8:11] == b"CR\2" or os.path.splitext(path)[1].lower() in _RAW_SUFFIXES):
        return "RAW"
    suffix = os.path.splitext(path)[1].lower()
    if name is None and suffix in _TGA_SUFFIXES and _is_tga(head):
        return "TGA"
    return _named_only(suffix, head) if name is None else name


def _named_only(suffix: str, head: bytes) -> str | None:
    name = _BY_SUFFIX.get(suffix)
    # Text headers have lines; SPIDER's are floats; the mark of PCD lies behind the first 2,048 bytes.
    if name in ("IM", "IMT") and b"\n" not in head[:100]:
        return None
    if name in ("SPIDER", "PCD", "GBR") and (
        (len(head) < HEAD_BYTES and name != "GBR") or (head.isascii() and b"\0" not in head)
    ):
        return None
    return name


def format_of(head: bytes) -> str | None:
    """Name the format whose file starts with these bytes, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return _iso_media_format(head)
    for name, looks_like in _LOOKS_LIKE:
        if looks_like(head):
            return name
    return None


def _iso_media_format(head: bytes) -> str | None:
    # The brands that follow tell AVIF and HEIF from the videos that share the container.
    box = head[8 : min(len(head), max(16, int.from_bytes(head[:4], "big")))]
    brands = {box[0:4], *(box[i : i + 4] for i in range(8, len(box), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if b"crx " in brands:  # Canon's CR3
        return "RAW"
    return "HEIF" if brands & _HEIF_BRANDS else None


def _is_bmp(head: bytes) -> bool:
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)


def _is_dib(head: bytes) -> bool:
    # A BMP without its file header.
    size = int.from_bytes(head[:4], "little")
    planes, bits = (head[8:10], head[10:12]) if size == 12 else (head[12:14], head[14:16])
    return (
        size in (12, 40, 52, 56, 64, 108, 124)
        and planes == b"\1\0"
        and int.from_bytes(bits, "little") in (1, 2, 4, 8, 16, 24, 32)
        and (size == 12 or int.from_bytes(head[16:20], "little") <= 6)
    )


def _is_icon(head: bytes) -> bool:
    # Type 1 is ICO, 2 is CUR; an uncompressed TGA starts alike but has no entries.
    return head[:2] == b"\0\0" and head[2:4] in (b"\1\0", b"\2\0") and head[4:6] != b"\0\0" and head[9:10] == b"\0"


def _is_pcx(head: bytes) -> bool:
    return len(head) >= 128 and head[0] == 10 and head[1] in (0, 2, 3, 5) and head[2] <= 1 and head[3] in (1, 2, 4, 8)


def _is_sgi(head: bytes) -> bool:
    return head[:2] == b"\x01\xda" and head[2:3] in (b"\0", b"\1") and head[3:4] in (b"\1", b"\2")


def _is_fli(head: bytes) -> bool:
    return head[4:6] in (b"\x11\xaf", b"\x12\xaf") and head[14:16] in (b"\0\0", b"\3\0")


def _is_tga(head: bytes) -> bool:
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or head[16] not in (1, 8, 15, 16, 24, 32):
        return False
    return head[12:14] != b"\0\0" and head[14:16] != b"\0\0"


_PNM = re.compile(rb"P[1-6][ \t\r\n](?:\s|#[^\n]*\n)*\d|P[fF]\s+\d|Py?7\s+WIDTH")
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE\s+svg|<(?:svg:)?svg[\s>])",
    re.DOTALL | re.IGNORECASE,
)
_XBM = re.compile(rb"\s*(?:/\*.*?\*/\s*)?#define[ \t]+\S*_width[ \t]+\d", re.DOTALL)

# Tried in this order; the first that fits wins.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"FUJIFILMCCD-RAW", "RAW"),
    (b"IIRO", "RAW"),
    (b"IIRS", "RAW"),
    (b"MMOR", "RAW"),
    (b"IIU\0", "RAW"),
    (b"FOVb", "RAW"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"BLP1", "BLP"),
    (b"BLP2", "BLP"),
    (b"FTEX", "FTEX"),
    (b"\x59\xa6\x6a\x95", "SUN"),
    (b"\xb1\x68\xde\x3a", "DCX"),
    (b"DanM", "MSP"),
    (b"LinS", "MSP"),
    (b"/* XPM */", "XPM"),
    (b"SIMPLE  =", "FITS"),
    (b"P7 332", "XVTHUMB"),
    (b"\0\0\0\0\0\0\0\4", "MCIDAS"),
    (b"\x80\xe8\0\0", "PIXAR"),
    (b"Image type:", "IM"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF-", "PDF"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"Paint Shop Pro Image File", "PSP"),
    (b"gimp xcf", "XCF"),
    (b"v/1\1", "EXR"),
    (b"#?RADIANCE", "HDR"),
    (b"#?RGBE", "HDR"),
    (b"II\xbc", "JXR"),
    (b"AT&TFORM", "DJVU"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"\xabKTX ", "KTX"),
    (b"ZISRAWFILE", "CZI"),
    (b"\xda\xce\xbe\n", "ND2"),
)
_LOOKS_LIKE: tuple[tuple[str, Callable[[bytes], object]], ...] = (
    ("WEBP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    ("BMP", _is_bmp),
    ("PPM", _PNM.match),
    ("ICO", lambda head: _is_icon(head) and head[2:4] == b"\1\0"),
    ("CUR", lambda head: _is_icon(head) and head[2:4] == b"\2\0"),
    ("PCX", _is_pcx),
    ("SGI", _is_sgi),
    ("FLI", _is_fli),
    ("XBM", _XBM.match),
    ("DIB", _is_dib),
    ("GBR", lambda head: head[20:24] == b"GIMP" and head[4:8] == b"\0\0\0\2"),
    ("SVG", _SVG.match),
    ("WMF", lambda head: head[:4] == b"\1\0\0\0" and head[40:44] == b" EMF"),
    ("DICOM", lambda head: head[128:132] == b"DICM"),
)

KNOWN_FORMATS = frozenset(
    {name for _, name in _MAGIC}
    | {name for name, _ in _LOOKS_LIKE}
    | {"AVIF", "HEIF", "TGA"}
    | set(_BY_SUFFIX.values())
)
"""Every name that ``sniff`` can give; nothing else is ever handed to Pillow."""
