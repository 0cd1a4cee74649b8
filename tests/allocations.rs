//! The packet path allocates nothing, in both directions, whatever the suite.

use vesper_esp::{Engine, EspSa, Inbound, Outbound, PacketBuf, Suite, Verdict};
use vesper_sa::{Direction, Mode, Timestamp};
use vesper_tests::{Carrier, params, sa, udp_packet};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const BATCH: usize = 64;
const ROUNDS: usize = 20;

fn main() {
    let _profiler = dhat::Profiler::builder().testing().build();
    for suite in Suite::ALL {
        for mode in [Mode::Tunnel, Mode::Transport] {
            for carrier in Carrier::ALL {
                let allocated = allocations(suite, mode, carrier);
                assert_eq!(allocated, 0, "{suite} {mode:?} {carrier:?}");
            }
        }
    }
    let before = dhat::HeapStats::get().total_blocks;
    drop(std::hint::black_box(vec![0u8; 10]));
    assert_eq!(
        dhat::HeapStats::get().total_blocks,
        before + 1,
        "the counter counts"
    );
    println!(
        "no allocation per packet: {} suites, both modes, four carriers",
        Suite::ALL.len()
    );
}

fn allocations(suite: &'static Suite, mode: Mode, carrier: Carrier) -> u64 {
    let now = Timestamp::ZERO;
    let outbound = sa(params(Direction::Outbound, mode, carrier), suite, 1);
    let inbound = sa(params(Direction::Inbound, mode, carrier), suite, 1);
    let packets: Vec<Vec<u8>> = (0..BATCH)
        .map(|index| udp_packet(carrier.v6, index * 20))
        .collect();
    let mut buffers: Vec<PacketBuf> = packets
        .iter()
        .map(|packet| PacketBuf::from_packet(packet))
        .collect();
    let mut engine = Engine::default();
    let mut allocated = 0;
    for round in 0..ROUNDS {
        for (buffer, packet) in buffers.iter_mut().zip(&packets) {
            assert!(buffer.refill(packet, PacketBuf::HEADROOM));
        }
        let mut batch: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| Outbound::new(&outbound, buffer))
            .collect();
        let before = dhat::HeapStats::get().total_blocks;
        engine.encapsulate(now, &mut batch);
        let sealed = dhat::HeapStats::get().total_blocks - before;
        assert!(
            batch
                .iter()
                .all(|entry| matches!(entry.verdict, Verdict::Sealed { .. }))
        );
        drop(batch);

        let mut batch: Vec<Inbound<'_, &mut PacketBuf>> =
            buffers.iter_mut().map(Inbound::new).collect();
        let sas = |_, _| -> Option<&EspSa> { Some(&inbound) };
        let before = dhat::HeapStats::get().total_blocks;
        engine.decapsulate(now, &sas, &mut batch);
        let opened = dhat::HeapStats::get().total_blocks - before;
        assert!(
            batch
                .iter()
                .all(|entry| matches!(entry.verdict, Verdict::Opened(_)))
        );
        // Steady state: what the first round needs once is not per packet.
        if round > 0 {
            allocated += sealed + opened;
        }
    }
    allocated
}
