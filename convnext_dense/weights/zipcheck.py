"""A zip that torch.save wrote, checked byte by byte: a flipped bit anywhere is noticed.

Checksums cover what the records hold. Of the headers around them each field either follows from
the others or is the same in all records, and padding is made of the letter Z. So no two readers can
disagree on what is in the file. The fields are those of PKWARE's APPNOTE.TXT, sections 4.3.7
to 4.3.16.
"""

import struct
import zipfile
from typing import BinaryIO

LIMIT = 0xFFFFFFFF  # of the 32-bit fields; larger values are in the zip64 fields
DESCRIPTOR = 8  # flag: checksum and sizes stand behind the data


def check_zip(file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Account for every byte of ``archive``, which is open on ``file``.

    Returns:
        Where in the file the data of each record begin, and their length.

    Raises:
        zipfile.BadZipFile: a byte is not as torch.save writes it.
    """
    records = archive.infolist()
    names = {record.filename for record in records}
    _check(len(names) == len(records), 'two records have one name')
    for record in records:
        plain = record.compress_type == 0 and record.compress_size == record.file_size
        _check(plain, 'a record is compressed')
    position, places, shared = 0, {}, set()
    for record in records:
        start, end, fields = _check_record(file, record, position)
        places[record.filename] = start, record.file_size
        shared.add(fields)
        position = end
    _check(len(shared) == 1, 'headers differ where all should agree')
    _, _, time, date, *_ = shared.pop()
    directory = b''.join(_directory_entry(record, time, date) for record in records)
    wide_end, narrow_end = _ends(len(records), len(directory), position)
    file.seek(position)
    rest = file.read(len(directory) + 200)
    allowed = directory + narrow_end, directory + wide_end + narrow_end
    _check(rest in allowed, 'its directory is wrong')
    broken = archive.testzip()  # last: records that overlap would take it for ever
    _check(
        broken is None,
        f'the checksum of {broken} is wrong, or '
        'torch.serialization.set_crc32_options(False) left it out',
    )
    return places


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise zipfile.BadZipFile(f'{message}; not as torch.save writes it')


def _check_record(
    file: BinaryIO, record: zipfile.ZipInfo, position: int
) -> tuple[int, int, tuple[int, ...]]:
    """Check the local header at ``position`` against the directory's ``record``.

    Returns:
        Where the data begin, where the next record begins, and the fields of both headers that are
        the same in all records.
    """
    size = record.file_size
    file.seek(position)
    header = struct.unpack('<4s5H3I2H', file.read(30))
    magic, version, flags, method, time, date, *sums, name_size, extra_size = header
    in_order = magic == b'PK\x03\x04' and record.header_offset == position
    _check(in_order, 'records do not follow one another')
    name, extra = file.read(name_size), file.read(extra_size)
    padded = _is_padding(extra) and _is_padding(record.extra)
    agree = (version, flags, method) == (record.extract_version, record.flag_bits, 0)
    _check(
        name == record.orig_filename.encode() and padded and agree,
        f'the headers of {record.filename} differ',
    )
    start = position + 30 + name_size + extra_size
    end = start + size
    if flags & DESCRIPTOR:
        expected_sums = [0, 0, 0]
        file.seek(end)
        behind = file.read(24)
        descriptor = struct.pack('<4sIQQ', b'PK\x07\x08', record.CRC, size, size)
        if behind != descriptor:  # its sizes may also be of 32 bits
            low = size & LIMIT
            descriptor = struct.pack('<4s3I', b'PK\x07\x08', record.CRC, low, low)
        _check(behind.startswith(descriptor), f'the checksum behind {record.filename} is wrong')
        end += len(descriptor)
    else:
        expected_sums = [record.CRC, min(size, LIMIT), min(size, LIMIT)]
    _check(sums == expected_sums, f'the header of {record.filename} is wrong')
    if size == 0:
        flags |= DESCRIPTOR  # as the others have it: torch writes none behind an empty record
    created = record.create_version, record.create_system
    attributes = record.internal_attr, record.external_attr, record.volume, record.reserved
    return start, end, (version, flags, time, date, *created, *attributes)


def _directory_entry(record: zipfile.ZipInfo, time: int, date: int) -> bytes:
    name, size = record.orig_filename.encode(), min(record.file_size, LIMIT)
    versions = record.create_version, record.create_system, record.extract_version, record.reserved
    content = record.flag_bits, 0, time, date, record.CRC, size, size
    lengths = len(name), len(record.extra), 0
    attributes = record.volume, record.internal_attr, record.external_attr
    offset = min(record.header_offset, LIMIT)
    fields = *versions, *content, *lengths, *attributes, offset
    return struct.pack('<4s4B4H3I5H2I', b'PK\x01\x02', *fields) + name + record.extra


def _ends(count: int, length: int, position: int) -> tuple[bytes, bytes]:
    """The zip64 and the plain end of a file with a directory of ``count`` records."""
    counts = count, count, length, position
    wide = struct.pack('<4sQ2H2I4Q', b'PK\x06\x06', 44, 0x31E, 0x2D, 0, 0, *counts)
    wide += struct.pack('<4sIQI', b'PK\x06\x07', 0, position + length, 1)
    few = min(count, 0xFFFF)
    counts = few, few, min(length, LIMIT), min(position, LIMIT)
    return wide, struct.pack('<4s4H2IH', b'PK\x05\x06', 0, 0, *counts, 0)


def _is_padding(extra: bytes) -> bool:
    """Whether a header's extra fields are torch's padding (FB) or zip's sizes beyond 4 GiB (1)."""
    while extra:
        kind, size = struct.unpack('<2sH', extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        padding = kind == b'FB' and not field.strip(b'Z') or kind == b'\x01\x00'
        if len(field) < size or not padding:
            return False
    return True
