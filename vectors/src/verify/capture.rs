//! A capture beside what it must hold: opened packet by packet, then all at once, and every
//! packet sealed again.

use vesper_esp::aead::Implementation;
use vesper_esp::{Buffer, Engine, Inbound, PacketBuf, Verdict};
use vesper_sa::Timestamp;

use super::packets::{described, opener, resealed};
use super::{Outcome, Vectors};
use crate::capture::CaptureReader;
use crate::formats::Expectation;
use crate::ingress::{Arrival, Ingress};
use crate::opener::Opener;

pub(super) fn run(
    expectation: &Expectation,
    vectors: &Vectors,
    implementation: Implementation,
) -> Outcome {
    let Some(beside) = &vectors.capture else {
        return Outcome::Failed("there is no capture beside it".to_owned());
    };
    let (one_by_one, at_once) = match (
        opener(&beside.entries, implementation),
        opener(&beside.entries, implementation),
    ) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(outcome), _) | (_, Err(outcome)) => return outcome,
    };
    let outcome = packets(expectation, &beside.pcap).and_then(|packets| {
        packet_by_packet(expectation, &packets, one_by_one, implementation)?;
        in_one_batch(expectation, &packets, &at_once, implementation)
    });
    match outcome {
        Ok(()) => Outcome::Passed,
        Err(reason) => Outcome::Failed(reason),
    }
}

/// The IP packets of a capture.
fn packets(expectation: &Expectation, pcap: &[u8]) -> Result<Vec<(Timestamp, Vec<u8>)>, String> {
    let mut reader = CaptureReader::new(pcap, "capture".to_owned()).map_err(|e| e.to_string())?;
    let mut ingress = Ingress::default();
    let mut packets = Vec::new();
    let mut frames = 0;
    while let Some(record) = reader.next_record().map_err(|e| e.to_string())? {
        frames += 1;
        match ingress.frame(&record) {
            (now, Arrival::Packet(packet)) => packets.push((now, packet.into_owned())),
            (_, Arrival::Fragment | Arrival::NotIp) => {}
            (_, Arrival::Malformed(contradiction)) => {
                return Err(format!("frame {frames}: {contradiction}"));
            }
        }
    }
    if frames == expectation.frames {
        Ok(packets)
    } else {
        Err(format!("{frames} frames instead of {}", expectation.frames))
    }
}

fn packet_by_packet(
    expectation: &Expectation,
    packets: &[(Timestamp, Vec<u8>)],
    mut opener: Opener,
    implementation: Implementation,
) -> Result<(), String> {
    let mut expected = expectation.inner.iter();
    for (now, packet) in packets {
        let opening = opener.open(*now, packet).map_err(|e| e.to_string())?;
        if !matches!(opening.verdict, Verdict::Opened(_)) {
            continue;
        }
        let sequence = opening.sequence;
        match expected.next() {
            Some(inner) if inner.0 == opening.inner => {
                resealed(&opener, implementation, packet, sequence)?;
            }
            Some(_) => return Err(format!("sequence {sequence}: another inner packet")),
            None => {
                return Err(format!(
                    "sequence {sequence}: one packet more than expected"
                ));
            }
        }
    }
    match expected.len() {
        0 => Ok(()),
        missing => Err(format!("{missing} packets less than expected")),
    }
}

fn in_one_batch(
    expectation: &Expectation,
    packets: &[(Timestamp, Vec<u8>)],
    opener: &Opener,
    implementation: Implementation,
) -> Result<(), String> {
    let mut batch: Vec<Inbound<'_, PacketBuf>> = packets
        .iter()
        .map(|(_, packet)| Inbound::new(PacketBuf::with_room(packet, 0, 0)))
        .collect();
    let mut engine = Engine::new(opener.ports().clone()).without_resynchronisation();
    let sas = |destination, spi| opener.find(implementation, destination, spi);
    engine.decapsulate(Timestamp::ZERO, &sas, &mut batch);
    let opened: Vec<&[u8]> = batch
        .iter()
        .filter(|entry| matches!(entry.verdict, Verdict::Opened(_)))
        .map(|entry| entry.packet.data())
        .collect();
    if opened
        .iter()
        .copied()
        .eq(expectation.inner.iter().map(|inner| inner.0.as_slice()))
    {
        return Ok(());
    }
    let verdicts: Vec<String> = batch.iter().map(|entry| described(entry.verdict)).collect();
    Err(format!("in one batch: {}", verdicts.join(", ")))
}
