//! Changes of associations that are asked for at the same time are made together: one change of
//! the store, which is what takes time, and one call of each node.
//!
//! Whoever has the right to change makes what all others have asked for until then, and answers
//! them. They succeed or fail each by itself: what a host may refuse after everything has been
//! checked, and what is of another host, is made alone, so that a refusal uses up nobody else's
//! numbers; and so is everything if the store fails.

use std::collections::HashSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Sender, bounded};

use super::change::Draft;
use super::event::Subject;
use super::record::SaId;
use super::{Plane, Refusal};

/// What becomes of one request.
#[derive(Default)]
pub(super) struct Made {
    /// What was added, in its order.
    pub(super) ids: Vec<SaId>,
    /// What was deleted, for those who are told of it: its host, and what it was.
    pub(super) gone: Vec<(Arc<str>, Subject)>,
}

/// How a request is put into a draft, by what there is at that moment.
type Build = Box<dyn Fn(&Plane) -> Result<Draft, Refusal> + Send>;

/// The requests that wait for somebody to make them.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Vec<Request>>);

struct Request {
    build: Build,
    answer: Sender<Result<Made, Refusal>>,
}

/// A request that is made together with others: how many associations it adds, and which it
/// deletes.
type Part = (Request, usize, Vec<(Arc<str>, Subject)>);

/// Whether all of it is of one host, that of the others, which can not refuse it any more: what is
/// added is new, and may be in software.
fn may_be_one_of_several(draft: &Draft, node: &mut Option<usize>) -> bool {
    let is_plain = draft.add.iter().all(|new| {
        !new.packet_only && !new.recovered && new.needs_rekey.is_none() && new.sa.sequence() == 0
    });
    let mut nodes =
        (draft.add.iter().map(|new| new.node)).chain(draft.remove.iter().map(|record| record.node));
    is_plain && nodes.all(|other| *node.get_or_insert(other) == other)
}

impl Plane {
    /// Makes a change of associations, perhaps together with others. `build` may be asked twice,
    /// and the draft has nothing but associations in it.
    pub(super) fn change_sas(
        &self,
        build: impl Fn(&Self) -> Result<Draft, Refusal> + Send + 'static,
    ) -> Result<Made, Refusal> {
        let (answer, answered) = bounded(1);
        let request = Request {
            build: Box::new(build),
            answer,
        };
        self.waiting.take_in(request);
        {
            let _changing = self.begin_change();
            // Nobody, if who had the right before has made this one as well.
            self.make_together(self.waiting.take_out());
        }
        // Who should have answered has panicked, and nothing is known.
        answered
            .recv()
            .unwrap_or_else(|_| Err(Refusal::unavailable("the change was not finished")))
    }

    fn make_together(&self, requests: Vec<Request>) {
        let mut all = Draft::default();
        let mut parts = Vec::with_capacity(requests.len());
        let mut removed = HashSet::new();
        let mut is_one = true;
        let mut node = None;
        let mut alone = Vec::new();
        for request in requests {
            match (request.build)(self) {
                Ok(draft) if !may_be_one_of_several(&draft, &mut node) => alone.push(request),
                Ok(draft) => {
                    // What two of them want to delete, only one can.
                    is_one &= draft.remove.iter().all(|sa| removed.insert(sa.id));
                    let gone = self.gone(&draft);
                    parts.push((request, draft.add.len(), gone));
                    all.add.extend(draft.add);
                    all.remove.extend(draft.remove);
                }
                Err(refusal) => request.answer(Err(refusal)),
            }
        }
        if !parts.is_empty() {
            self.make_parts(all, parts, is_one);
        }
        for request in alone {
            self.make_alone(request);
        }
    }

    fn make_parts(&self, all: Draft, parts: Vec<Part>, is_one: bool) {
        let made = match is_one {
            true => self.apply(all),
            false => Err(Refusal::unavailable("the requests contradict each other")),
        };
        match (made, parts.len()) {
            (Ok(ids), _) => {
                let mut ids = ids.into_iter();
                for (request, count, gone) in parts {
                    let ids = ids.by_ref().take(count).collect();
                    request.answer(Ok(Made { ids, gone }));
                }
            }
            (Err(refusal), 1) => {
                for (request, ..) in parts {
                    request.answer(Err(refusal.clone()));
                }
            }
            (Err(_), _) => {
                for (request, ..) in parts {
                    self.make_alone(request);
                }
            }
        }
    }

    fn make_alone(&self, request: Request) {
        let made = (request.build)(self).and_then(|draft| {
            let gone = self.gone(&draft);
            let ids = self.apply(draft)?;
            Ok(Made { ids, gone })
        });
        request.answer(made);
    }

    fn gone(&self, draft: &Draft) -> Vec<(Arc<str>, Subject)> {
        let gone = draft.remove.iter();
        gone.map(|record| (Arc::clone(&record.host), self.subject(&record.identity())))
            .collect()
    }
}

impl Waiting {
    fn take_in(&self, request: Request) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(request);
    }

    fn take_out(&self) -> Vec<Request> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Request {
    fn answer(&self, made: Result<Made, Refusal>) {
        // The asker waits for it.
        let _ = self.answer.send(made);
    }
}
