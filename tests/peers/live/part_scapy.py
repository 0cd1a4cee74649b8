"""scapy at the far end: it seals pings for the machine, and opens what the machine answers.

    kernel of this host ── TAP ── vesperd ── veth ── scapy
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from net import HOST_MAC, PEER_HOST_MAC, ROOT, TARGET, Vesperd, host, run as run_command
from part_changes import INNER, MACS, OUTER, Bed

# As tests/peers/suites.py names them.
SUITES = ('aes128gcm16', 'aes256gcm16', 'chacha20poly1305', 'aes256gmac', 'aes256ccm16', 'aes128-sha256', 'aes256-sha384',
          'aes256-sha512', 'aes128ctr-sha256', 'null-sha256')
SIZES = (0, 1, 2, 3, 15, 16, 17, 56, 500, 1300)


def python():
    """The Python of `tests/peers/run`, which has scapy; made if there is none."""
    venv, here = TARGET / 'peers-venv', ROOT / 'tests' / 'peers' / 'requirements.txt'
    if not (venv / 'requirements.txt').exists() or (venv / 'requirements.txt').read_text() != here.read_text():
        run_command(sys.executable, '-m', 'venv', '--clear', venv)
        run_command(venv / 'bin' / 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', here, timeout=300)
        (venv / 'requirements.txt').write_text(here.read_text())
    return venv / 'bin' / 'python'


def suites(program):
    """What tests/peers knows about its suites: names, lengths of keys, words of `ip xfrm`."""
    words = ('import json; from suites import SUITES; '
             'print(json.dumps({s.name: [s.key_len + s.salt_len, s.auth_key_len, '
             's.algorithm_words(bytes(range(s.key_len + s.salt_len)), bytes(range(100, 100 + s.auth_key_len)))] '
             'for s in SUITES.values()}))')
    done = subprocess.run([str(program), '-c', words], cwd=ROOT / 'tests' / 'peers', capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def exchanged(report, bed, program, name, lengths, natt, esn):
    key, auth_key = bytes(range(lengths[0])), bytes(range(100, 100 + lengths[1]))
    more = ' encap espinudp 4500 4500 0.0.0.0' if natt else ''
    more += ' flag esn' if esn else ''
    states = [f'ip xfrm state add src {OUTER[n]} dst {OUTER[1 - n]} proto esp spi {0x3000 + n:#x} reqid 1 mode tunnel '
              f'replay-window 64 {lengths[2]}{more} dir {"in" if n else "out"}' for n in (0, 1)]
    policies = [f'ip xfrm policy add {policy}' for policy in bed.policies(0)]
    text = host('a', OUTER[0], HOST_MAC, {'af_packet': {'interface': 'wire'}},
                [{'name': 'vm', 'mac': MACS[0], 'port': {'tap': {'interface': 'vm0'}}, 'sa': states, 'policy': policies}])
    order = dict(suite=name, key=key.hex(), auth_key=auth_key.hex(), natt=natt, esn=esn, outer=OUTER, inner=INNER,
                 spis=(0x3000, 0x3001), macs=(HOST_MAC, PEER_HOST_MAC), interface='wire', first=1, count=len(SIZES), sizes=SIZES)
    what = f'{name}{", UDP" if natt else ""}{", ESN" if esn else ""}'
    with Vesperd(bed.sides[0], text, ready=lambda: 'LOWER_UP' in bed.sides[0]('ip', 'link', 'show', 'vm0')) as vesperd:
        done = subprocess.run([*bed.sides[1].prefix, str(program), str(Path(__file__).with_name('scapy_end.py'))],
                              input=json.dumps(order), capture_output=True, text=True, timeout=120)
        result = json.loads(done.stdout) if done.returncode == 0 else {'good': 0, 'bad': [done.stderr[-800:]]}
        report.check(result['good'] == len(SIZES), f'{what}: {result}\n{vesperd.output()}')


def run(report, _work, quick=False):
    program = python()
    known = suites(program)
    with tempfile.TemporaryDirectory(prefix='vesper-scapy-') as directory:
        bed = Bed(directory)
        try:
            far = bed.sides[1]
            # The far host's kernel answers ARP for the tunnel's end; it knows nothing of ESP.
            far('ip', 'link', 'set', 'wire', 'address', PEER_HOST_MAC)
            far('ip', 'addr', 'add', f'{OUTER[1]}/24', 'dev', 'wire')
            for name in SUITES:
                for natt, esn in ((False, True),) if quick else ((False, False), (False, True), (True, False), (True, True)):
                    exchanged(report, bed, program, name, known[name], natt, esn)
        finally:
            bed.close()
