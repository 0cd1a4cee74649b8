//! Who is at the other end of a Unix socket.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;

use super::ControlError;

/// Who may use a socket, beside root and the user of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The name of the group that the socket belongs to.
    pub group: Option<String>,
    /// Users by number.
    pub uids: Vec<u32>,
}

/// The same with the group found.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    own: Uid,
    pub(super) gid: Option<Gid>,
    uids: Vec<u32>,
}

impl Allowed {
    pub(super) fn new(peers: &Peers) -> Result<Self, ControlError> {
        let gid = match &peers.group {
            None => None,
            Some(name) => {
                let found = Group::from_name(name).ok().flatten();
                let group = found.ok_or_else(|| ControlError::Group(name.clone()))?;
                Some(group.gid)
            }
        };
        Ok(Self {
            own: Uid::effective(),
            gid,
            uids: peers.uids.clone(),
        })
    }

    /// Whether users are named.
    pub(super) const fn names_users(&self) -> bool {
        !self.uids.is_empty()
    }

    /// Whether anybody is named.
    pub(super) const fn names_others(&self) -> bool {
        self.names_users() || self.gid.is_some()
    }

    /// Whether a process of this user and group may use the socket.
    pub(super) fn admits(&self, uid: u32, gid: u32) -> bool {
        uid == 0
            || uid == self.own.as_raw()
            || self.uids.contains(&uid)
            || self.gid.is_some_and(|allowed| {
                allowed.as_raw() == gid || groups_of(uid, gid).contains(&allowed)
            })
    }
}

/// All groups of a user, as far as the system knows.
fn groups_of(uid: u32, gid: u32) -> Vec<Gid> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_are_named() {
        let allowed = Allowed {
            own: Uid::from_raw(990),
            gid: Some(Gid::from_raw(991)),
            uids: vec![1000],
        };
        assert!(allowed.admits(0, 0));
        assert!(allowed.admits(990, 5));
        assert!(allowed.admits(1000, 5));
        assert!(allowed.admits(2000, 991));
        assert!(!allowed.admits(2000, 5));
        assert!(!allowed.admits(991, 990));
        let unknown = Peers {
            group: Some("no-such-group".to_owned()),
            ..Peers::default()
        };
        assert!(matches!(
            Allowed::new(&unknown),
            Err(ControlError::Group(_))
        ));
    }
}
