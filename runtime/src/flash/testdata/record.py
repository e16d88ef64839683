#!/usr/bin/env python3
"""Makes toy.elf, an ELF file with a stamped name plate, and toy.uf2 from it, by the UF2 specification and the plate's
description alone: nothing here is shared with the Rust code. Run it in its own directory."""
import struct

BASE = 0x1000_0000


def siphash(key, data, c=2, d=4):
    mask = (1 << 64) - 1
    rotate = lambda x, n: ((x << n) | (x >> (64 - n))) & mask
    k0, k1 = struct.unpack("<2Q", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & mask; v[1] = rotate(v[1], 13) ^ v[0]; v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & mask; v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask; v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask; v[1] = rotate(v[1], 17) ^ v[2]; v[2] = rotate(v[2], 32)

    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        (m,) = struct.unpack_from("<Q", data, at)
        v[3] ^= m; rounds(c); v[0] ^= m
    m = int.from_bytes(data[whole:], "little") | (len(data) & 255) << 56
    v[3] ^= m; rounds(c); v[0] ^= m
    v[2] ^= 0xFF; rounds(d)
    return (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")


def plate(digest):
    return b"HONEPAD\0" + b"pico".ljust(12, b"\0") + bytes([1, 2, 3]) + bytes([1]) + digest


def segments(digest):
    code = bytes(range(1, 201)) + plate(digest)
    # Data that start-up code copies to RAM: it runs at 0x20000000 and lies in flash after a gap, across two pages.
    return [(BASE + 0x100, BASE + 0x100, code), (0x2000_0000, BASE + 0x1F0, bytes(i % 251 for i in range(300)))]


def flat(parts):
    out = bytearray()
    for _, at, data in parts:
        out += b"\xff" * (at - BASE - 0x100 - len(out))
        out += data
    return bytes(out)


stamped = segments(siphash(b"hone firmware id", flat(segments(bytes(8)))))
header = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
header += struct.pack("<2H5I6H", 2, 40, 1, BASE + 0x100, 52, 0, 0, 52, 32, len(stamped), 40, 0, 0)
at, table, body = 52 + 32 * len(stamped), b"", b""
for virtual, physical, data in stamped:
    table += struct.pack("<8I", 1, at + len(body), virtual, physical, len(data), len(data), 5, 4)
    body += data
open("toy.elf", "wb").write(header + table + body)

pages = {}
for _, physical, data in stamped:
    for k, byte in enumerate(data):
        pages.setdefault((physical + k) & ~255, bytearray(b"\xff" * 256))[(physical + k) & 255] = byte
uf2 = b""
for i, (address, data) in enumerate(sorted(pages.items())):
    uf2 += struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0x2000, address, 256, i, len(pages), 0xE48BFF56)
    uf2 += bytes(data) + bytes(476 - 256) + struct.pack("<I", 0x0AB16F30)
open("toy.uf2", "wb").write(uf2)
print(len(pages), "blocks")
