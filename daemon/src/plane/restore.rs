//! What the store has kept, in force again after a start; and the end.

use std::collections::HashMap;

use vesper_sa::Timestamp;
use vesper_verify::xfrm;

use super::change::Draft;
use super::durable::unmarked;
use super::sa::parse_one;
use super::{Plane, Refusal, Scope};
use crate::store::Recovered;

impl Plane {
    /// Puts in force what the store has kept: associations where they may go on, policies.
    /// Once, after the machines were added and before a reload. What can not be restored is
    /// left out, and told: its machine or host is gone.
    pub fn restore(&self, recovered: &Recovered) -> Result<Vec<Refusal>, Refusal> {
        let _changing = self.begin_change();
        let mut draft = Draft::default();
        let mut clocks = HashMap::new();
        let mut left_out = Vec::new();
        for found in &recovered.sas {
            let (origin, words) = unmarked(&found.sa.words);
            let standing = Some(found.standing.clone());
            let made = parse_one(words)
                .and_then(|state| self.make(Scope::All, state, standing, origin, &mut clocks));
            match made {
                Ok(new) => {
                    self.durable.recall(&found.sa);
                    draft.add.push(new);
                }
                Err(refusal) => left_out.push(refusal),
            }
        }
        for (_, _, lines) in &recovered.policies {
            for line in lines {
                let (origin, words) = unmarked(line);
                let added = xfrm::parse_policies(words, "store")
                    .map_err(Refusal::from)
                    .and_then(|policies| {
                        policies.into_iter().try_for_each(|policy| {
                            self.draft_policy(&mut draft, policy, true, origin)
                        })
                    });
                left_out.extend(added.err());
            }
        }
        self.apply(draft)?;
        Ok(left_out)
    }

    /// Keeps the state of all associations, so that the next start goes on without a gap. The
    /// last thing, after the workers have ended.
    pub fn finish(&self, now: Timestamp) -> Result<(), Refusal> {
        self.durable.finish(now)
    }
}
