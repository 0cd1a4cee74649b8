//! Running a processor: fair turns between machines, spreading of machines over processors.

use core::sync::atomic::{AtomicI64, Ordering};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::MutexGuard;

use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::{BATCH, Flow, Nic, Processor, Work};
use crate::rings::{append, lock, quantum, weight_of};

/// The processors of an adapter, which wait between two batches: see [`Nic::pause`].
#[derive(Debug)]
#[must_use = "they go on when it is dropped"]
pub struct Paused<'a, B>(
    #[allow(dead_code, reason = "held, not read")] Vec<MutexGuard<'a, Processor<B>>>,
);

/// What came of one turn.
struct Turn {
    packets: usize,
    /// Nothing waited. A flow that only pays back is not idle.
    is_idle: bool,
}

impl<B: Buffer> Nic<B> {
    /// Lets a processor of the adapter work until it has processed about `budget` packets or
    /// nothing waits for it. Returns how many it has processed.
    ///
    /// Machines take turns by deficit round robin over bytes and packets, each with the share
    /// that its weight gives.
    pub fn run_processor(&self, processor: usize, now: Timestamp, budget: usize) -> usize {
        let Some(processor_state) = self.processors.get(processor) else {
            return 0;
        };
        let mut state = lock(processor_state);
        if now < state.stalled_until {
            return 0;
        }
        let mut done = 0;
        {
            let mut config = self.read();
            if !config.late_pushes.is_empty() {
                drop(config);
                self.apply_late_pushes(now);
                config = self.read();
            }
            let Some(flows) = config.flows.get(processor) else {
                return 0;
            };
            let mut idle = 0;
            while done < budget && idle < flows.len() {
                if state.wire.len() >= state.wire_room {
                    state.wire_room = self.wire_room();
                    if state.wire.len() >= state.wire_room {
                        break;
                    }
                }
                state.cursor += 1;
                if state.cursor >= flows.len() {
                    state.cursor = 0;
                }
                let Some(flow) = flows.get(state.cursor) else {
                    break;
                };
                if flow.is_idle() {
                    idle += 1;
                    continue;
                }
                let turn = match flow {
                    Flow::Receive(queue) => self.turn(
                        &queue.deficit,
                        queue.weight,
                        &mut state,
                        |nic, state, most| nic.process_receive(&config, queue, state, now, most),
                    ),
                    Flow::Send(port) => self.turn(
                        &port.deficit,
                        port.settings.share(),
                        &mut state,
                        |nic, state, most| nic.process_send(&config, port, state, now, most),
                    ),
                };
                idle = if turn.is_idle { idle + 1 } else { 0 };
                done += turn.packets;
            }
        }
        self.flush(&mut state);
        let stopped = core::mem::take(&mut state.stopped);
        drop(state);
        for queue in stopped {
            self.dma_stopped(queue);
        }
        done
    }

    /// Holds all processors between two batches until what is returned is dropped. Whatever
    /// verbs are given meanwhile is one epoch: no packet sees a part of them.
    ///
    /// Only the thread that holds them may give verbs then, and it must not run a processor, or
    /// ask what one has done.
    pub fn pause(&self) -> Paused<'_, B> {
        Paused(self.processors.iter().map(lock).collect())
    }

    /// One turn of one flow: batches until its share is used up or it has nothing more. What it
    /// took beyond its share it owes in the turns to come.
    fn turn(
        &self,
        deficit: &AtomicI64,
        weight: u16,
        state: &mut Processor<B>,
        mut batch: impl FnMut(&Self, &mut Processor<B>, usize) -> (usize, usize),
    ) -> Turn {
        let mut left = deficit.load(Ordering::Relaxed) + quantum(weight);
        let mut turn = Turn {
            packets: 0,
            is_idle: left > 0,
        };
        while left > 0 {
            let most = BATCH.min((left / weight_of(64)) as usize + 1);
            let (count, bytes) = batch(self, state, most);
            turn.packets += count;
            turn.is_idle &= count == 0;
            left -= bytes as i64 + count as i64 * weight_of(0);
            if count < most {
                left = left.min(0);
            }
        }
        deficit.store(left, Ordering::Relaxed);
        turn
    }

    /// How many frames more the wire takes before sending has to wait for somebody to take
    /// them off. A processor remembers it from one time to the next: somebody may have taken
    /// some off meanwhile, and other processors may have sent some.
    fn wire_room(&self) -> usize {
        (self.profile.ring * 16).saturating_sub(lock(&self.wire).len())
    }

    /// Puts what a processor has done where others see it.
    fn flush(&self, state: &mut Processor<B>) {
        if !state.wire.is_empty() {
            let mut wire = lock(&self.wire);
            append(&mut wire, &mut state.wire);
            state.wire_room = (self.profile.ring * 16).saturating_sub(wire.len());
        }
        if !state.recycled.is_empty() {
            lock(&self.recycled).append(&mut state.recycled);
        }
        self.report_events(state);
    }

    /// Dynamic VMQ: gives each machine the processor that makes the loads most even, by the
    /// bytes and packets that were processed since the last call; the busiest machines first.
    /// Below `threshold` units of work altogether one processor does it all.
    ///
    /// Returns the machines that were moved.
    pub fn spread(&self, threshold: u64) -> Vec<(VmId, usize)> {
        let mut loads: BTreeMap<VmId, u64> = BTreeMap::new();
        for processor in &self.processors {
            for (vm, Work { packets, bytes }) in lock(processor).work.drain() {
                *loads.entry(vm).or_default() += bytes + packets * 128;
            }
        }
        let mut config = self.write();
        let mut vms: Vec<_> = config
            .vms
            .keys()
            .filter(|vm| **vm != VmId::HOST)
            .map(|vm| (loads.get(vm).copied().unwrap_or(0), *vm))
            .collect();
        vms.sort_by_key(|(load, vm)| (Reverse(*load), *vm));
        let total: u64 = vms.iter().map(|(load, _)| load).sum();
        let processors = if total < threshold {
            1
        } else {
            self.processors.len()
        };
        // Processor 0 has the host's own work as well.
        let mut sums = vec![0_u64; processors];
        sums[0] = loads.get(&VmId::HOST).copied().unwrap_or(0);
        let mut moved = Vec::new();
        for (load, vm) in vms {
            let least = (0..processors).min_by_key(|index| (sums[*index], *index));
            let least = least.unwrap_or(0);
            sums[least] += load;
            if let Some(entry) = config.vms.get_mut(&vm)
                && entry.processor != least
            {
                entry.processor = least;
                moved.push((vm, least));
            }
        }
        if !moved.is_empty() {
            config.rebuild_flows(self.processors.len());
        }
        moved
    }
}
