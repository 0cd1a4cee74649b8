"""Capture formats, files that are none, and association files with a mistake."""

import random

import capture
from capture import ETHERNET, LINUX_SLL, RAW
from hostile import Sender, association
from hostile_mutations import associations, mixed
from receiver import Receiver


def run(verifier, report):
    _formats(verifier, report)
    _snaplen(verifier, report)
    _broken_captures(verifier, report)
    _broken_associations(verifier, report)
    _spellings(verifier, report)
    _mutated_files(verifier, report)


def _formats(verifier, report):
    """The same frames in every format of file."""
    frames = mixed(random.Random("formats"), 60)
    naive = Receiver(associations())
    for frame in frames:
        naive.frame(ETHERNET, frame)
    sa_text = "\n".join(sa.line() for sa in associations())
    files = {}
    for order in "<>":
        for nanoseconds in (False, True):
            kind = f"{'little' if order == '<' else 'big'} endian, {'nano' if nanoseconds else 'micro'}seconds"
            files[f"pcap {kind}"] = capture.write_pcap(ETHERNET, frames, order=order, nanoseconds=nanoseconds)
            files[f"pcapng {kind}"] = capture.write_pcapng([ETHERNET], [(0, frame) for frame in frames], order=order,
                                                           nanoseconds=nanoseconds)
        files[f"pcapng simple blocks {order}"] = capture.write_pcapng([ETHERNET], [(0, frame) for frame in frames],
                                                                      order=order, simple=True)
    files["two pcapng sections"] = (
        capture.write_pcapng([ETHERNET], [(0, frame) for frame in frames[:30]])
        + capture.write_pcapng([RAW, ETHERNET], [(1, frame) for frame in frames[30:]], order=">"))
    untagged = [frame for frame in frames if frame[12:14] != b"\x81\x00"]
    for name, data in files.items():
        opened = verifier.pcap(sa_text, data)
        report.check((opened.counts(), opened.inner) == (naive.report(), naive.inner),
                     f"{name}: exit {opened.exit}, counts {opened.counts()}, expected {naive.report()}; "
                     f"{opened.stderr[:200]}")
    # One file, three interfaces of different link types.
    links = [(0, ETHERNET, bytes), (1, RAW, lambda frame: frame[14:]), (2, LINUX_SLL, lambda frame: capture.sll(frame[14:]))]
    blocks, naive = [], Receiver(associations())
    for index, frame in enumerate(untagged):
        interface, link_type, convert = links[index % 3]
        blocks.append((interface, convert(frame)))
        naive.frame(link_type, convert(frame))
    opened = verifier.pcap(sa_text, capture.write_pcapng([link for _, link, _ in links], blocks))
    report.check((opened.counts(), opened.inner) == (naive.report(), naive.inner),
                 f"pcapng with three link types: counts {opened.counts()}, expected {naive.report()}")


def _snaplen(verifier, report):
    """What a snaplen has cut is malformed: its IP length lies beyond the bytes."""
    sa = association()
    sender = Sender(sa)
    whole = [capture.ethernet(sender.seal()) for _ in range(12)]
    cut = [frame[:70] if index % 3 == 0 else frame for index, frame in enumerate(whole)]
    data = capture.write_pcap(ETHERNET, cut, snaplen=70, originals=[len(frame) for frame in whole])
    naive = Receiver([sa])
    for frame in cut:
        naive.frame(ETHERNET, frame)
    opened = verifier.pcap(sa.line(), data)
    report.check((opened.counts(), opened.inner) == (naive.report(), naive.inner),
                 f"frames cut by a snaplen: counts {opened.counts()}, expected {naive.report()}; {opened.stderr[:200]}")


def _broken_captures(verifier, report):
    sa = association()
    good = capture.write_pcap(ETHERNET, [capture.ethernet(Sender(sa).seal())])
    block = capture.write_pcapng([ETHERNET], [(0, capture.ethernet(Sender(sa).seal()))])
    broken = {
        "an empty file": b"", "three bytes": good[:3], "no capture": b"GET / HTTP/1.1\r\n\r\n" * 9,
        "a cut file header": good[:20], "a cut record header": good[:30], "a cut record": good[:-1],
        "a record of 4 GB": good[:32] + b"\xff\xff\xff\xff" + good[36:],
        "an unknown link type": good[:20] + (147).to_bytes(4, "little") + good[24:],
        "a cut pcapng block": block[:-30], "a pcapng section header alone, cut": block[:20],
        "pcapng lengths that contradict": block[:-4] + b"\1\2\3\4",
        "an interface that was never described": capture.write_pcapng([], [(0, b"x" * 60)]),
    }
    for name, data in broken.items():
        opened = verifier.pcap(sa.line(), data)
        report.check(opened.exit == 2 and opened.stderr, f"{name}: exit {opened.exit}, message {opened.stderr[:200]!r}")
    for name, data in (("no packet", capture.write_pcap(ETHERNET, [])),
                       ("no packet, pcapng", capture.write_pcapng([ETHERNET], []))):
        opened = verifier.pcap(sa.line(), data)
        report.check(opened.exit == 1, f"a capture with {name}: exit {opened.exit}, expected 1 (nothing ran)")


def _broken_associations(verifier, report):
    sa = association()
    data = capture.write_pcap(ETHERNET, [capture.ethernet(Sender(sa).seal())])
    line = sa.line()
    key = f"0x{sa.key.hex()}"
    broken = {
        "an unknown word": line + " wombat 7", "a short key": line.replace(key, key[:-2]),
        "no digits": line.replace(key, "0xzz"),
        "no SPI": line.replace(f"spi {sa.spi:#x} ", ""), "AH": line.replace("proto esp", "proto ah"),
        "IPComp": line.replace("proto esp", "proto comp"), "two IP versions": line.replace(str(sa.source), "fd00::1"),
        "an address": line.replace(str(sa.source), "192.0.2.256"), "an ICV of 80 bits": line.replace(" 128", " 80"),
        "another mode": line.replace("mode tunnel", "mode beet"), "a reserved SPI": line.replace(f"{sa.spi:#x}", "0x10"),
        "3DES": line.split(" aead ")[0] + f" enc 'cbc(des3_ede)' 0x{'11' * 24} auth-trunc 'hmac(sha256)' 0x{'22' * 32} 128",
        "MD5": line.split(" aead ")[0] + f" enc 'cbc(aes)' 0x{'11' * 16} auth-trunc 'hmac(md5)' 0x{'22' * 16} 96",
        "no integrity": line.split(" aead ")[0] + f" enc 'cbc(aes)' 0x{'11' * 16}",
        "no algorithm": line.split(" aead ")[0], "an open quote": line.replace("'rfc", "rfc", 1),
        "ESN without a window": line.replace("replay-window 64", "flag esn"), "one SA twice": f"{line}\n{line}",
        "a wrong second line": f"{line}\nip xfrm state add src",
    }
    for name, text in broken.items():
        opened = verifier.pcap(text, data)
        report.check(opened.exit == 2 and opened.stderr and "in.sa" in opened.stderr,
                     f"association file with {name}: exit {opened.exit}, message {opened.stderr[:200]!r}")
    opened = verifier.pcap("# nothing but a comment", data)
    report.check(opened.exit == 1, f"association file without a line: exit {opened.exit}, expected 1")


def _spellings(verifier, report):
    """Other ways to write the same association."""
    for suite, words in (
        ("aes128gcm16", [("", ""), ("xfrm state add", "x s a"), ("xfrm state add", "xfrm state update"),
                         ("ip xfrm", "sudo ip xfrm"), ("ip xfrm", "ip -4 xfrm"), ("ip xfrm", "  ip\t xfrm"),
                         ("spi 0xc0ffee01", "spi 3237998081"), ("spi 0xc0ffee01", "spi 0xC0FFEE01"),
                         ("'rfc4106(gcm(aes))'", '"rfc4106(gcm(aes))"'), (" mode", " \\\n  mode"), (" 128", " 128\r"),
                         (" 128", " 128 # a comment"), ("ip xfrm", "\n# a comment\n\n  # another\nip xfrm"),
                         (" 128", " 128 flag noecn"), (" 128", " 128 sel src 0.0.0.0/0 dst 0.0.0.0/0")]),
        ("aes128-sha256", [("'cbc(aes)'", "aes"), ("'hmac(sha256)'", "sha256")]),
        ("null-sha256", [("cipher_null", "ecb(cipher_null)"), ('""', "''")]),
    ):
        sa = association(suite)
        data = capture.write_pcap(ETHERNET, [capture.ethernet(Sender(sa).seal())])
        for old, new in words:
            opened = verifier.pcap(sa.line().replace(old, new), data)
            report.check(opened.exit == 0, f"{suite} with {new!r} for {old!r}: exit {opened.exit}; {opened.stderr[:200]}")


def _mutated_files(verifier, report):
    """Files with random bytes changed are opened or refused with a reason; nothing else happens."""
    rng = random.Random("mutated files")
    sa_text = "\n".join(sa.line() for sa in associations())
    frames = mixed(rng, 20)
    files = [capture.write_pcap(ETHERNET, frames), capture.write_pcapng([ETHERNET, RAW], [(0, each) for each in frames])]
    for index in range(200):
        data = _mutated(rng, files[index % 2], 120)
        opened = verifier.pcap(sa_text, data)
        report.check(opened.exit in (0, 1) or opened.exit == 2 and opened.stderr, lambda: (
            f"mutated capture {index}: exit {opened.exit}, message {opened.stderr[:200]!r} "
            f"({report.keep(f'mutated {index}', sa_text, data)})"))
        text = _mutated(rng, sa_text.encode(), len(sa_text)).decode("latin-1")
        opened = verifier.pcap(text, files[0])
        report.check(opened.exit in (0, 1) or opened.exit == 2 and "in.sa" in opened.stderr, lambda: (
            f"mutated association file {index}: exit {opened.exit}, message {opened.stderr[:200]!r} "
            f"({report.keep(f'mutated lines {index}', text, files[0])})"))


def _mutated(rng, data, end):
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(min(end, len(changed)))
        kind = rng.random()
        if kind < 0.7:
            changed[at] = rng.choice((0, 255, 32, 34, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8)))
        elif kind < 0.85:
            del changed[at:at + rng.randrange(1, 9)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(changed)
