"""A zip that torch.save wrote, checked byte by byte: no flipped bit passes, and no two readers can disagree on it.

Checksums cover what the records hold. Of the headers around them each field either follows from the others or is the same
in all records, and padding is made of the letter Z. The fields are those of PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16.
"""

import struct
import zipfile
from typing import BinaryIO

LIMIT = 0xFFFFFFFF  # of the 32-bit fields; beyond it the zip64 fields count


def check_zip(file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Account for every byte of ``archive``, which is open on ``file``.

    Returns:
        Where in the file the data of each record begin, and their length.

    Raises:
        zipfile.BadZipFile: a byte is not as torch.save writes it.
    """

    def check(holds, what):
        if not holds:
            raise zipfile.BadZipFile(f'{what}; not as torch.save writes it')

    records = archive.infolist()
    check(len({record.filename for record in records}) == len(records), 'two records have one name')
    check(
        not any(
            record.compress_type or record.compress_size != record.file_size for record in records
        ),
        'a record is compressed',
    )
    position, shared, places = 0, set(), {}
    for record in records:
        file.seek(position)
        magic, version, flags, method, time, date, crc, packed, size, name_size, extra_size = (
            struct.unpack('<4s5H3I2H', file.read(30))
        )
        name, extra = file.read(name_size), file.read(extra_size)
        check(
            magic == b'PK\x03\x04' and record.header_offset == position,
            'records do not follow one another',
        )
        check(
            name == record.orig_filename.encode()
            and _is_padding(extra)
            and _is_padding(record.extra),
            f'the headers of {record.filename} differ',
        )
        places[record.filename] = position + 30 + name_size + extra_size, record.file_size
        position = sum(places[record.filename])
        sizes = (record.CRC, record.file_size, record.file_size)
        if flags & 8:  # checksum and sizes stand behind the data, in 32 or 64 bit
            check((crc, packed, size) == (0, 0, 0), f'the header of {record.filename} is wrong')
            file.seek(position)
            behind, expected = file.read(24), struct.pack('<4sIQQ', b'PK\x07\x08', *sizes)
            if behind != expected:
                expected = struct.pack('<4s3I', b'PK\x07\x08', *(size & LIMIT for size in sizes))
            check(behind.startswith(expected), f'the checksum behind {record.filename} is wrong')
            position += len(expected)
        else:
            check(
                crc == record.CRC and packed == size == min(record.file_size, LIMIT),
                f'the header of {record.filename} is wrong',
            )
        check(
            (version, flags, method) == (record.extract_version, record.flag_bits, 0),
            f'the headers of {record.filename} differ',
        )
        described = (
            flags if record.file_size else flags | 8
        )  # of an empty record torch writes no descriptor
        shared.add(
            (
                version,
                described,
                time,
                date,
                record.create_version,
                record.create_system,
                record.internal_attr,
                record.external_attr,
                record.volume,
                record.reserved,
            )
        )
    check(len(shared) == 1, 'headers differ where all should agree')

    directory = b''.join(
        struct.pack(
            '<4s4B4H3I5H2I',
            b'PK\x01\x02',
            record.create_version,
            record.create_system,
            record.extract_version,
            record.reserved,
            record.flag_bits,
            0,
            time,
            date,
            record.CRC,
            *[min(record.file_size, LIMIT)] * 2,
            len(record.orig_filename.encode()),
            len(record.extra),
            0,
            record.volume,
            record.internal_attr,
            record.external_attr,
            min(record.header_offset, LIMIT),
        )
        + record.orig_filename.encode()
        + record.extra
        for record in records
    )
    length = len(directory)
    count = len(records)
    end = struct.pack(
        '<4s4H2IH',
        b'PK\x05\x06',
        0,
        0,
        min(count, 0xFFFF),
        min(count, 0xFFFF),
        min(length, LIMIT),
        min(position, LIMIT),
        0,
    )
    wide = struct.pack(
        '<4sQ2H2I4Q', b'PK\x06\x06', 44, 0x31E, 0x2D, 0, 0, count, count, length, position
    ) + struct.pack('<4sIQI', b'PK\x06\x07', 0, position + length, 1)
    file.seek(position)
    check(
        file.read(length + 200) in (directory + end, directory + wide + end),
        'its directory is wrong',
    )
    broken = archive.testzip()  # last: records that overlap would take it for ever
    check(
        broken is None,
        f'the checksum of {broken} is wrong, or torch.serialization.set_crc32_options(False) left it out',
    )
    return places


def _is_padding(extra):
    """Extra fields of a header: torch's padding to an alignment (FB), and zip's own for sizes beyond 4 GiB (1)."""
    while extra:
        kind, size = struct.unpack('<2sH', extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if len(field) < size or not (
            kind == b'FB' and not field.strip(b'Z') or kind == b'\x01\x00'
        ):
            return False
    return True
