"""strongSwan's data path (kernel-libipsec) at the far end, with the keys that IKE has agreed upon.

    kernel of this host ── TAP ── vesperd ── veth ── charon ── TUN ── kernel of this host

Two charons negotiate over the link, and write the keys of the child into their logs. Then the
first one goes, without a word, and vesperd takes its place, with its address and those keys.

For the rekey the first one stays, for IKE alone: its data path is switched off, and what it agrees upon is
imported here while packets flow.
"""
import os
import re
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from net import Namespace, Sniffer, Vesperd, host, run as run_command, vesperd_path
from part_linux import VM_MAC

CHARON = '/usr/sbin/charon-systemd'
# The user-space data path comes before the kernel's, which is then not asked.
PLUGINS = ('random nonce openssl aes sha1 sha2 hmac gcm ccm ctr chapoly curve25519 kdf drbg pem pkcs1 '
           'constraints vici kernel-libipsec kernel-netlink socket-default')
# Of a request to delete: informational messages are of type 37.
HESITATION = 'send_delay = 2000\n send_delay_type = 37\n'
OUTER, INNER = ('10.77.0.1', '10.77.0.2'), ('10.78.1.1', '10.78.2.1')
MACS = ('02:00:00:00:0a:00', '02:00:00:00:0b:00')
# IKE's names, with a share of 25519 for the child: each has a key of its own.
SUITES = ('aes128gcm16', 'aes256gcm16', 'aes128gcm12', 'aes256gcm8', 'chacha20poly1305', 'aes128ccm16',
          'aes128-sha256', 'aes256-sha384', 'aes256-sha512', 'aes128ctr-sha256', 'null-sha256')
CIPHERS = {
    'AES_GCM_16': "aead 'rfc4106(gcm(aes))' {e} 128", 'AES_GCM_12': "aead 'rfc4106(gcm(aes))' {e} 96",
    'AES_GCM_8': "aead 'rfc4106(gcm(aes))' {e} 64", 'AES_CCM_16': "aead 'rfc4309(ccm(aes))' {e} 128",
    'CHACHA20_POLY1305': "aead 'rfc7539esp(chacha20,poly1305)' {e} 128", 'AES_CBC': "enc 'cbc(aes)' {e}",
    'AES_CTR': "enc 'rfc3686(ctr(aes))' {e}", 'NULL': "enc 'cipher_null' \"\"",
}
HASHES = {
    'HMAC_SHA2_256_128': "auth-trunc 'hmac(sha256)' {a} 128", 'HMAC_SHA2_384_192': "auth-trunc 'hmac(sha384)' {a} 192",
    'HMAC_SHA2_512_256': "auth-trunc 'hmac(sha512)' {a} 256",
}


class Charon:
    """strongSwan's daemon in a namespace; all that it needs is in one directory."""

    def __init__(self, namespace, directory, side, suite, hesitates=False):
        """hesitates: it waits for two seconds before it deletes what has been replaced."""
        self.directory = Path(directory)
        self.directory.mkdir()
        self.log = self.directory / 'log'
        vici = f'unix://{self.directory}/vici'
        (self.directory / 'strongswan.conf').write_text(
            f'charon-systemd {{ load = {PLUGINS}\n install_routes = yes\n {HESITATION if hesitates else ""} journal {{ default = -1 }}\n'
            # The keys stand in the log at this level: a laboratory's setting.
            f'filelog {{ log {{ path = {self.log}\n default = 1\n chd = 4\n flush_line = yes }} }}\n'
            f'plugins {{ vici {{ socket = {vici} }} kernel-libipsec {{ allow_peer_ts = yes }} }} }}\n'
            f'swanctl {{ load = random openssl pem pkcs1\n plugins {{ vici {{ socket = {vici} }} }} }}\n')
        nets = [f'{address.rsplit(".", 1)[0]}.0/24' for address in INNER]
        (self.directory / 'swanctl.conf').write_text(
            f'connections {{ peer {{ version = 2\n local_addrs = {OUTER[side]}\n remote_addrs = {OUTER[1 - side]}\n'
            f'proposals = aes256gcm16-prfsha256-x25519\n encap = yes\n dpd_delay = 0\n'
            f'local {{ auth = psk\n id = side{side}.test }}\n remote {{ auth = psk }}\n'
            f'children {{ child {{ local_ts = {nets[side]}\n remote_ts = {nets[1 - side]}\n'
            f'esp_proposals = {suite}-x25519\n mode = tunnel }} }} }} }}\n'
            'secrets { ike-peers { secret = "only for this test" } }\n')
        self.environment = dict(os.environ, STRONGSWAN_CONF=str(self.directory / 'strongswan.conf'))
        self.vici = vici
        self.process = namespace.start(CHARON, stdin=-3, stdout=-3, stderr=-3, env=self.environment)
        end = time.time() + 15
        while not (self.directory / 'vici').exists():
            if time.time() > end or self.process.poll() is not None:
                raise RuntimeError(f'charon does not start: {self.said()[-800:]}')
            time.sleep(0.05)
        self.swanctl('--load-all', '--file', self.directory / 'swanctl.conf')

    def swanctl(self, *words):
        return run_command('swanctl', *words, '--uri', self.vici, env=self.environment)

    def said(self):
        return self.log.read_text() if self.log.exists() else ''

    def close(self):
        if self.process.poll() is None:
            # Nobody is told that the associations end.
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def states(self, child=0):
        """Two associations of a child, the first one or what replaced it, as `ip xfrm state` lines, from this
        side's log; empty while it has not got that far."""
        text = self.said()
        spis = list(re.finditer(r'SPI 0x([0-9a-f]+), src (\S+) dst (\S+)\n', text))[:2 * child + 2]
        if len(spis) < 2 * child + 2:
            return []
        text = text[spis[2 * child - 1].end() if child else 0:spis[-1].end()]
        cipher = re.search(r'using (\S+) for encryption', text)[1]
        auth = re.search(r'using (\S+) for integrity', text)
        words = CIPHERS[cipher] + (f' {HASHES[auth[1]]}' if auth else '')
        keys = {}
        lines = text.splitlines()
        for at, line in enumerate(lines):
            found = re.search(r'\[CHD\] (encryption|integrity) (initiator|responder) key => (\d+) bytes', line)
            if found:
                dump = ''
                while len(dump) < 2 * int(found[3]):
                    at += 1
                    dump += re.search(r'\]\s+\d+: ((?:[0-9A-F]{2} )+)', lines[at])[1].replace(' ', '')
                keys[found[1][0] if found[1][0] == 'e' else 'a', found[2]] = '0x' + dump
        states = []
        for spi, source, destination in (found.groups() for found in spis[-2:]):
            # The initiator, on side 0, sends with the initiator's keys.
            who = 'initiator' if source == OUTER[0] else 'responder'
            algorithm = words.format(e=keys.get(('e', who), ''), a=keys.get(('a', who), ''))
            states.append(f'ip xfrm state add src {source} dst {destination} proto esp spi 0x{spi} reqid 1 mode tunnel '
                          f'replay-window 64 {algorithm} encap espinudp 4500 4500 0.0.0.0 '
                          f'dir {"out" if source == OUTER[0] else "in"}')
        return states


@contextmanager
def pair(directory, suite, hesitates=False):
    """Two namespaces and a charon in each, with a child between them."""
    here, far = Namespace(), Namespace()
    charons = []
    try:
        here('ip', 'link', 'add', 'wire', 'address', MACS[0], 'type', 'veth', 'peer', 'name', 'wire', 'address', MACS[1],
             'netns', far.name)
        for side, ns in enumerate((here, far)):
            ns('sysctl', '-qw', 'net.ipv6.conf.wire.disable_ipv6=1')
            ns('ethtool', '-K', 'wire', 'tx', 'off')
            ns('ip', 'addr', 'add', f'{OUTER[side]}/24', 'dev', 'wire')
            ns('ip', 'addr', 'add', f'{INNER[side]}/24', 'dev', 'lo')
            ns('ip', 'link', 'set', 'wire', 'up')
            place = Path(directory) / f'{suite}-{side}{"-rekey" if hesitates else ""}'
            charons.append(Charon(ns, place, side, suite, hesitates and side == 0))
        charons[0].swanctl('--initiate', '--child', 'child', '--timeout', '15')
        yield here, far, charons
    finally:
        for charon in charons:
            charon.close()
        here.close()
        far.close()


def vesperd(here, states, control=''):
    """vesperd in the first charon's place, with its machine behind a TAP interface of this kernel."""
    here('ip', 'addr', 'flush', 'dev', 'lo')
    here('ip', 'tuntap', 'add', 'vm0', 'mode', 'tap', 'vnet_hdr')
    here.batch(f'''link set vm0 address {VM_MAC}
link set vm0 up
addr add {INNER[0]}/24 dev vm0
route add {INNER[1]}/32 dev vm0 src {INNER[0]}
''')
    tunnel = (f'src {OUTER[0]} dst {OUTER[1]}', f'src {OUTER[1]} dst {OUTER[0]}')
    policies = [f'ip xfrm policy add dir {way} tmpl {ends} proto esp reqid 1 mode tunnel'
                for way, ends in zip(('out', 'in'), tunnel)]
    text = host('a', OUTER[0], MACS[0], {'af_packet': {'interface': 'wire'}},
                [{'name': 'vm', 'mac': VM_MAC, 'port': {'tap': {'interface': 'vm0'}},
                  'sa': states, 'policy': policies}])
    return Vesperd(here, control + text, ready=lambda: 'LOWER_UP' in here('ip', 'link', 'show', 'vm0'))


def negotiated(report, directory, suite):
    """One suite: IKE between two charons, then vesperd with the first one's keys."""
    with pair(directory, suite) as (here, far, charons):
        states = charons[0].states()
        report.check(len(states) == 2, f'{suite}: no two associations in the log')
        charons[0].close()
        # The address and its network are vesperd's and its machine's from now on.
        here('ip', 'addr', 'flush', 'dev', 'wire')
        sniffer = Sniffer((far, 'wire'), (here, 'wire'))
        try:
            with vesperd(here, states) as daemon:
                for size in (56, 1300):
                    answers = here.ping(INNER[1], '-s', size, count=5)
                    report.check(answers == 5, f'{suite}, {size} bytes: {answers} of 5 answers\n{daemon.output()}')
                answers = far.ping(INNER[0], '-I', INNER[1], count=5)
                report.check(answers == 5, f'{suite}, from strongSwan: {answers} of 5 answers')
            time.sleep(0.2)
            sniffer.stop()
            kinds = sniffer.kinds()
            report.check(kinds.get('esp-udp', 0) >= 30 and kinds.get('clear', 0) == 0, f'{suite}, on the wire: {kinds}')
        finally:
            sniffer.close()


def rekeyed(report, directory, suite):
    """IKE replaces the child in mid-flow; what it agreed upon is imported here before strongSwan sends with it.

    The charon on this side keeps the address, for IKE. Its data path has lost its interface.
    """
    with pair(directory, suite, hesitates=True) as (here, far, charons):
        old, control = charons[0].states(), f'{directory}/{suite}-control'
        here('ip', 'link', 'set', 'ipsec0', 'down')
        sniffer = Sniffer((far, 'wire'), (here, 'wire'))

        def vesper(*words, **more):
            program = str(Path(vesperd_path()).with_name('vesper'))
            return run_command(program, '--socket', control, *words, **more)

        try:
            with vesperd(here, old, f'[daemon]\ncontrol = "{control}"\n') as daemon:
                flow = here.start('ping', '-n', '-q', '-c', '500', '-i', '0.02', '-W', '3', INNER[1], stdout=-1, text=True)
                time.sleep(1)
                charons[0].swanctl('--rekey', '--child', 'child')
                end = time.time() + 5
                while not (new := charons[0].states(child=1)) and time.time() < end:
                    time.sleep(0.01)
                # Inbound first; the peer has had both since it answered.
                inbound_first = sorted(new, key=lambda state: state.endswith('dir out'))
                vesper('sa', 'import', '--vm', 'vm', input='\n'.join(inbound_first) + '\n')
                time.sleep(5)
                for spi in (re.search(r'spi (\S+)', state)[1] for state in old):
                    vesper('sa', 'del', 'spi', spi)
                out = flow.communicate(timeout=30)[0]
                report.check('500 received' in out, f'{suite}, rekey in mid-flow: {out}\n{daemon.output()}')
            sniffer.stop()
            spis = [int(re.search(r'spi (\S+)', state)[1], 16) for state in old + new]
            seen = sniffer.encapsulated()
            report.check(len(spis) == 4 and all(seen.get(spi, 0) >= 25 for spi in spis),
                         f'{suite}, rekey: packets of the SPIs {spis}: {seen}')
            report.check(sniffer.kinds().get('clear', 0) == 0, f'{suite}, rekey, on the wire: {sniffer.kinds()}')
            report.note(f'{suite}: rekey by IKE in mid-flow, packets of each association: '
                        f'{[seen.get(spi, 0) for spi in spis]}')
        finally:
            sniffer.close()


def run(report, _work, quick=False):
    if not os.path.exists(CHARON) or not shutil.which('swanctl'):
        report.skip(f'{CHARON} or swanctl is not installed')
        return
    version = run_command('dpkg-query', '-W', '-f', '${Version}', 'charon-systemd')
    report.note(f'strongSwan {version}; kernel-libipsec has tunnel mode in UDP only, and no ESN')
    with tempfile.TemporaryDirectory(prefix='vesper-swan-') as directory:
        for suite in SUITES[1:2] + SUITES[6:7] if quick else SUITES:
            negotiated(report, directory, suite)
            rekeyed(report, directory, suite)
