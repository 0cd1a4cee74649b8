//! Names and records as bytes.
//!
//! Numbers are big-endian. Every record carries its own proof that it is what was written:
//! associations by authenticated encryption, the others by a seal.

use std::net::IpAddr;

use vesper_sa::{Direction, LeaseHolder, LeaseRecord, SaIdentity, Spi, VmId};
use zeroize::Zeroizing;

use super::clock::Moment;
use super::kek::{SEAL_LEN, StoreKeys};
use super::model::{Fingerprint, Loss, SaName};

/// What is known of the numbers of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Nobody knows which numbers were used; the key must not be used again.
    pub(super) burnt: Option<Loss>,
    /// Outbound numbers granted.
    pub(super) lease: Option<LeaseRecord>,
    /// No inbound number above this one was accepted.
    pub(super) mark: u64,
    /// What the outbound association had carried when the record was written.
    pub(super) sent: Usage,
    /// What the inbound one had.
    pub(super) received: Usage,
    /// The place of the key in the queue of those that no association has; 0 while one has it.
    pub(super) retired: u64,
}

/// What an association had carried when its highest number was `sequence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) sequence: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// An association as it lies in its table.
pub(super) struct SaRecord {
    pub(super) key: Fingerprint,
    pub(super) sequence: u64,
    pub(super) born: Moment,
    pub(super) configured: bool,
    pub(super) wrapped: Vec<u8>,
}

const NUMBERS_LEN: usize = 2 + 12 * 8;
const SA_HEADER: usize = 16 + 8 + Moment::LEN + 1;

impl Numbers {
    pub(super) fn encode(&self, keys: &StoreKeys, key: Fingerprint) -> Vec<u8> {
        let lease = self.lease.unwrap_or(NO_LEASE);
        let mut bytes = Vec::with_capacity(NUMBERS_LEN + SEAL_LEN);
        bytes.push(self.burnt.map_or(0, |loss| loss as u8));
        bytes.push(u8::from(self.lease.is_some()));
        for field in [
            lease.holder.host,
            lease.holder.epoch,
            lease.granted,
            lease.used,
            self.mark,
            self.sent.sequence,
            self.sent.packets,
            self.sent.bytes,
            self.received.sequence,
            self.received.packets,
            self.received.bytes,
            self.retired,
        ] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        let seal = keys.seal("numbers", &[&key.0, &bytes]);
        bytes.extend_from_slice(&seal);
        bytes
    }

    pub(super) fn decode(keys: &StoreKeys, key: Fingerprint, bytes: &[u8]) -> Option<Self> {
        let (record, seal) = bytes.split_last_chunk::<SEAL_LEN>()?;
        if record.len() != NUMBERS_LEN || keys.seal("numbers", &[&key.0, record]) != *seal {
            return None;
        }
        let mut rest = Reader(record);
        let [burnt, leased] = rest.take()?;
        let mut next = || rest.take().map(u64::from_be_bytes);
        let lease = LeaseRecord {
            holder: LeaseHolder {
                host: next()?,
                epoch: next()?,
            },
            granted: next()?,
            used: next()?,
        };
        Some(Self {
            burnt: match burnt {
                0 => None,
                code => Some(Loss::from_code(code)?),
            },
            lease: (leased != 0).then_some(lease),
            mark: next()?,
            sent: Usage {
                sequence: next()?,
                packets: next()?,
                bytes: next()?,
            },
            received: Usage {
                sequence: next()?,
                packets: next()?,
                bytes: next()?,
            },
            retired: next()?,
        })
    }

    /// The highest number that may have been used in this direction.
    pub(super) fn reached(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Inbound => self.mark,
            Direction::Outbound => self.lease.map_or(0, |lease| lease.granted),
        }
    }

    /// What the association had carried at most when the daemon crashed: what it had when the
    /// record was written, and as many packets of mean length as there were numbers left.
    pub(super) fn past(&self, direction: Direction) -> (u64, u64) {
        let Usage {
            sequence,
            packets,
            bytes,
        } = match direction {
            Direction::Inbound => self.received,
            Direction::Outbound => self.sent,
        };
        let more = self.reached(direction).saturating_sub(sequence);
        if packets == 0 {
            return (0, 0);
        }
        let mean = bytes.div_ceil(packets);
        (
            packets.saturating_add(more),
            bytes.saturating_add(more.saturating_mul(mean)),
        )
    }
}

const NO_LEASE: LeaseRecord = LeaseRecord {
    holder: LeaseHolder { host: 0, epoch: 0 },
    granted: 0,
    used: 0,
};

impl SaRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend_from_slice(&self.wrapped);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        Some(Self {
            key: Fingerprint(rest.take()?),
            sequence: u64::from_be_bytes(rest.take()?),
            born: Moment::decode(rest.take()?),
            configured: rest.take()? != [0],
            wrapped: rest.0.to_vec(),
        })
    }

    /// What is authenticated with the wrapped words: the name and everything beside them.
    pub(super) fn associated(&self, name: &[u8]) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend_from_slice(name);
        bytes
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SA_HEADER + self.wrapped.len());
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.born.encode());
        bytes.push(u8::from(self.configured));
        bytes
    }

    pub(super) fn words(&self, keys: &StoreKeys, name: &[u8]) -> Option<Zeroizing<String>> {
        keys.unwrap(&self.associated(name), &self.wrapped)
    }
}

impl SaName {
    /// Owner, direction, SPI, destination, node.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.node.len());
        bytes.extend_from_slice(&self.sa.owner.0.to_be_bytes());
        bytes.push(match self.sa.direction {
            Direction::Inbound => 0,
            Direction::Outbound => 1,
        });
        bytes.extend_from_slice(&self.sa.spi.get().to_be_bytes());
        match self.sa.destination {
            IpAddr::V4(address) => {
                bytes.push(4);
                bytes.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                bytes.push(6);
                bytes.extend_from_slice(&address.octets());
            }
        }
        bytes.extend_from_slice(self.node.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let owner = VmId(u32::from_be_bytes(rest.take()?));
        let direction = match rest.take()? {
            [0] => Direction::Inbound,
            [1] => Direction::Outbound,
            _ => return None,
        };
        let spi = Spi::new(u32::from_be_bytes(rest.take()?))?;
        let destination = match rest.take()? {
            [4] => IpAddr::from(rest.take::<4>()?),
            [6] => IpAddr::from(rest.take::<16>()?),
            _ => return None,
        };
        Some(Self {
            node: String::from_utf8(rest.0.to_vec()).ok()?,
            sa: SaIdentity {
                owner,
                direction,
                destination,
                spi,
            },
        })
    }
}

/// Takes fields of fixed length off the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kek;
    use super::*;

    fn keys() -> StoreKeys {
        StoreKeys::derive(&Kek::random().unwrap())
    }

    #[test]
    fn names_come_back() {
        for destination in ["192.0.2.1", "2001:db8::7"] {
            for direction in [Direction::Inbound, Direction::Outbound] {
                let name = SaName {
                    node: "left".to_owned(),
                    sa: SaIdentity {
                        owner: VmId(70_000),
                        direction,
                        destination: destination.parse().unwrap(),
                        spi: Spi::new(0xdead_beef).unwrap(),
                    },
                };
                let bytes = name.encode();
                assert_eq!(SaName::decode(&bytes), Some(name));
                assert_eq!(SaName::decode(&bytes[..10]), None);
            }
        }
    }

    #[test]
    fn numbers_come_back_unless_changed() {
        let keys = keys();
        let key = Fingerprint([3; 16]);
        let numbers = Numbers {
            burnt: Some(Loss::StoreOlder),
            lease: Some(LeaseRecord {
                holder: LeaseHolder { host: 1, epoch: 2 },
                granted: 300,
                used: 200,
            }),
            mark: 5,
            sent: Usage {
                sequence: 250,
                packets: 10,
                bytes: 995,
            },
            received: Usage::default(),
            retired: 7,
        };
        let bytes = numbers.encode(&keys, key);
        assert_eq!(Numbers::decode(&keys, key, &bytes), Some(numbers));
        assert_eq!(Numbers::decode(&keys, Fingerprint([4; 16]), &bytes), None);
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 4;
            assert_eq!(Numbers::decode(&keys, key, &changed), None);
        }
        // 50 more numbers than when it was written, of 100 bytes each.
        assert_eq!(numbers.past(Direction::Outbound), (60, 5995));
        assert_eq!(numbers.reached(Direction::Inbound), 5);
    }
}
