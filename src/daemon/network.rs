//! Notices that the network of this machine changed: then a broker that was away may be there.
//!
//! The kernel tells it on a netlink socket. If the system refuses the socket (a sandbox without
//! AF_NETLINK), attempts are merely as rare as they are without news.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::cluster::dialer::Dialer;

/// Links, IPv4 addresses, IPv4 and IPv6 routes (RTMGRP_…). A new IPv6 address comes with a route;
/// the kernel reports the addresses themselves again with each advertisement of a router.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

/// The link has a carrier.
const IFF_LOWER_UP: u32 = 1 << 16;

/// Length of a message's head.
const HEAD: usize = 16;

/// See the module's head.
pub(super) struct Network {
    dialer: Arc<Dialer>,
    socket: Option<OwnedFd>,
    links: LinkStates,
}

/// Whether each link has a carrier, by its index.
#[derive(Default)]
struct LinkStates(HashMap<u32, bool>);

impl Network {
    /// Begins to watch. [`Network::read`] must follow each event of [`Network::file`].
    pub(super) fn watch(dialer: Arc<Dialer>) -> Network {
        let socket = open()
            .map_err(|e| log::debug!("this node does not notice changes of the network: {e}"))
            .ok();
        Network {
            dialer,
            socket,
            links: LinkStates::default(),
        }
    }

    /// The socket at which the kernel tells.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Reads the messages of the kernel.
    pub(super) fn read(&mut self) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0; 8192];
        let mut is_news = false;
        let is_gone = loop {
            match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => break false,
                Ok((read, _)) => is_news |= self.links.is_news(&buffer[..read]),
                // Messages were lost, and one of them may have been the news.
                Err(rustix::io::Errno::NOBUFS) => is_news = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => break e != rustix::io::Errno::AGAIN,
            }
        };
        if is_gone {
            self.socket = None;
        }
        if is_news {
            self.try_now();
        }
    }

    /// Lets the threads try a broker that is away.
    pub(super) fn try_now(&self) {
        self.dialer.try_now();
    }
}

fn open() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, flags, None)?; // protocol 0 is NETLINK_ROUTE
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

impl LinkStates {
    /// Whether one of the messages says that there is more network than before.
    fn is_news(&mut self, mut messages: &[u8]) -> bool {
        let mut is_news = false;
        while messages.len() >= HEAD {
            let length = u32_at(messages, 0).unwrap_or(0) as usize;
            let Some(message) = messages.get(..length).filter(|m| m.len() >= HEAD) else {
                break;
            };
            is_news |= match u16::from_ne_bytes([message[4], message[5]]) {
                RTM_NEWADDR | RTM_NEWROUTE => true,
                RTM_NEWLINK => self.gets_carrier(message),
                _ => false,
            };
            // Messages begin at multiples of four.
            messages = messages.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        is_news
    }

    /// Whether a link that had no carrier has one now. Drivers repeat the state of a link often.
    fn gets_carrier(&mut self, message: &[u8]) -> bool {
        let (Some(index), Some(flags)) = (u32_at(message, HEAD + 4), u32_at(message, HEAD + 8))
        else {
            return false;
        };
        let is_up = flags & IFF_LOWER_UP != 0;
        self.0.insert(index, is_up) == Some(false) && is_up
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    four.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u32]) -> Vec<u8> {
        let length = (HEAD + 4 * body.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEAD, 0);
        body.iter()
            .for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes
    }

    fn link(index: u32, flags: u32) -> Vec<u8> {
        message(RTM_NEWLINK, &[0, index, flags, 0])
    }

    #[test]
    fn a_route_an_address_and_a_carrier_are_news() {
        let mut links = LinkStates::default();
        assert!(links.is_news(&message(RTM_NEWADDR, &[0, 0])));
        assert!(links.is_news(&message(RTM_NEWROUTE, &[0, 0, 0])));
        assert!(!links.is_news(&message(RTM_NEWROUTE + 1, &[0])), "gone");
        assert!(
            !links.is_news(&link(2, IFF_LOWER_UP)),
            "it may be nothing new"
        );
        assert!(!links.is_news(&link(2, 1)));
        assert!(!links.is_news(&link(3, IFF_LOWER_UP)));
        let two = [link(3, IFF_LOWER_UP), link(2, IFF_LOWER_UP | 1)].concat();
        assert!(links.is_news(&two));
        assert!(!links.is_news(&two), "the same again");
    }

    #[test]
    fn broken_messages_are_no_news() {
        let mut links = LinkStates::default();
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = message(RTM_NEWADDR, &[]);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(!links.is_news(&bytes), "{length}");
        }
        assert!(!links.is_news(&message(RTM_NEWLINK, &[0])));
        assert!(!links.is_news(b"short"));
    }
}
