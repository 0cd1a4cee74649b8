"""strongSwan's data path (kernel-libipsec) at the far end, with the keys that IKE has agreed upon.

    kernel of this host ── TAP ── vesperd ── veth ── charon ── TUN ── kernel of this host

Two charons negotiate over the link, and write the keys of the child into their logs. Then the
first one goes, without a word, and vesperd takes its place, with its address and those keys.
"""
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from net import Namespace, Sniffer, Vesperd, host, run as run_command
from part_linux import VM_MAC

CHARON = '/usr/sbin/charon-systemd'
# The user-space data path comes before the kernel's, which is then not asked.
PLUGINS = ('random nonce openssl aes sha1 sha2 hmac gcm ccm ctr chapoly curve25519 kdf drbg pem pkcs1 '
           'constraints vici kernel-libipsec kernel-netlink socket-default')
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

    def __init__(self, namespace, directory, side, suite):
        self.directory = Path(directory)
        self.directory.mkdir()
        self.log = self.directory / 'log'
        vici = f'unix://{self.directory}/vici'
        (self.directory / 'strongswan.conf').write_text(
            f'charon-systemd {{ load = {PLUGINS}\n install_routes = yes\n journal {{ default = -1 }}\n'
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

    def states(self):
        """The child's two associations as `ip xfrm state` lines, from this side's log."""
        text = self.said()
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
        for spi, source, destination in re.findall(r'SPI 0x([0-9a-f]+), src (\S+) dst (\S+)', text)[:2]:
            # The initiator, on side 0, sends with the initiator's keys.
            who = 'initiator' if source == OUTER[0] else 'responder'
            algorithm = words.format(e=keys.get(('e', who), ''), a=keys.get(('a', who), ''))
            states.append(f'ip xfrm state add src {source} dst {destination} proto esp spi 0x{spi} reqid 1 mode tunnel '
                          f'replay-window 64 {algorithm} encap espinudp 4500 4500 0.0.0.0 '
                          f'dir {"out" if source == OUTER[0] else "in"}')
        return states


def negotiated(report, directory, suite):
    """One suite: IKE between two charons, then vesperd with the first one's keys."""
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
            charons.append(Charon(ns, Path(directory) / f'{suite}-{side}', side, suite))
        charons[0].swanctl('--initiate', '--child', 'child', '--timeout', '15')
        states = charons[0].states()
        report.check(len(states) == 2, f'{suite}: no two associations in the log')
        charons[0].close()
        # The address and its network are vesperd's and its machine's from now on.
        here('ip', 'addr', 'flush', 'dev', 'wire')
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
        sniffer = Sniffer((far, 'wire'), (here, 'wire'))
        try:
            with Vesperd(here, text, ready=lambda: 'LOWER_UP' in here('ip', 'link', 'show', 'vm0')) as vesperd:
                for size in (56, 1300):
                    answers = here.ping(INNER[1], '-s', size, count=5)
                    report.check(answers == 5, f'{suite}, {size} bytes: {answers} of 5 answers\n{vesperd.output()}')
                answers = far.ping(INNER[0], '-I', INNER[1], count=5)
                report.check(answers == 5, f'{suite}, from strongSwan: {answers} of 5 answers')
            time.sleep(0.2)
            sniffer.stop()
            kinds = sniffer.kinds()
            report.check(kinds.get('esp-udp', 0) >= 30 and kinds.get('clear', 0) == 0, f'{suite}, on the wire: {kinds}')
        finally:
            sniffer.close()
    finally:
        for charon in charons:
            charon.close()
        here.close()
        far.close()


def run(report, _work, quick=False):
    if not os.path.exists(CHARON) or not shutil.which('swanctl'):
        report.skip(f'{CHARON} or swanctl is not installed')
        return
    version = run_command('dpkg-query', '-W', '-f', '${Version}', 'charon-systemd')
    report.note(f'strongSwan {version}; kernel-libipsec has tunnel mode in UDP only, and no ESN')
    with tempfile.TemporaryDirectory(prefix='vesper-swan-') as directory:
        for suite in SUITES[1:2] + SUITES[6:7] if quick else SUITES:
            negotiated(report, directory, suite)
