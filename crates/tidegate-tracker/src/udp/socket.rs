//! The sockets of a relay: those that listen and tell which address was asked, and those that lead to a tracker.
//!
//! IPv4 and IPv6 have sockets of their own everywhere: a client of IPv4 that arrives on a socket for both would get
//! answers of the wrong family (BEP 15 writes peers by the family of the packet).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_model::UdpRelayMode;

/// What the kernel may hold for us while the thread is busy, in bytes; it grants what it allows.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket that clients send to.
#[derive(Debug)]
pub struct Listener {
    socket: UdpSocket,
    v6: bool,
}

/// A datagram that arrived; its bytes are in the buffer.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Its length; more than the buffer's if it was cut.
    pub length: usize,
    /// Who sent it.
    pub client: SocketAddr,
    /// The local address that was asked.
    pub asked: Asked,
}

/// A local address, and the interface where that is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The address.
    pub ip: IpAddr,
    /// Only of link-local addresses, else 0.
    interface: u32,
}

impl Listener {
    /// Binds. `shared` lets another process of this user have the port too, which is how a successor takes over.
    pub fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        if !shared {
            // Without `SO_REUSEPORT` the kernel tells whether somebody else is there.
            unbound(address)?.bind(&address.into())?;
        }
        let socket = unbound(address)?;
        socket.set_reuse_port(true)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        socket.bind(&address.into())?;
        Ok(Self {
            socket: socket.into(),
            v6: address.is_ipv6(),
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// A second handle of the socket, to wait with.
    pub fn handle(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Takes one datagram. `control` is scratch space of [`control_space`].
    pub fn receive(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
        let mut parts = [IoSliceMut::new(buffer)];
        // With this flag the length is the true one, also of what was cut.
        let flags = MsgFlags::MSG_TRUNC;
        let received = recvmsg::<SockaddrStorage>(self.fd(), &mut parts, Some(control), flags)?;
        let asked = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked {
                ip: Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into(),
                interface: 0,
            }),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let interface = if ip.is_unicast_link_local() {
                    info.ipi6_ifindex
                } else {
                    0
                };
                Some(Asked {
                    ip: ip.into(),
                    interface,
                })
            }
            _ => None,
        });
        let client = received.address.as_ref().and_then(|address| {
            let v4 = address
                .as_sockaddr_in()
                .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
            v4.or_else(|| {
                address.as_sockaddr_in6().map(|v6| {
                    SocketAddr::V6(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()))
                })
            })
        });
        match (client, asked) {
            (Some(client), Some(asked)) => Ok(Received {
                length: received.bytes,
                client,
                asked,
            }),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    /// Sends from the address that was asked.
    pub fn answer(&self, datagram: &[u8], client: SocketAddr, asked: Asked) -> io::Result<()> {
        let parts = [IoSlice::new(datagram)];
        let flags = MsgFlags::MSG_DONTWAIT;
        match (client, asked.ip) {
            (SocketAddr::V4(client), IpAddr::V4(ip)) if !self.v6 => {
                let info = in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    },
                    ipi_addr: in_addr { s_addr: 0 },
                };
                let messages = [ControlMessage::Ipv4PacketInfo(&info)];
                let to = SockaddrIn::from(client);
                sendmsg(self.fd(), &parts, &messages, flags, Some(&to))?;
            }
            (SocketAddr::V6(client), IpAddr::V6(ip)) if self.v6 => {
                let info = in6_pktinfo {
                    ipi6_addr: in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: asked.interface,
                };
                let messages = [ControlMessage::Ipv6PacketInfo(&info)];
                let to = SockaddrIn6::from(client);
                sendmsg(self.fd(), &parts, &messages, flags, Some(&to))?;
            }
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
        Ok(())
    }
}

/// Scratch space for [`Listener::receive`].
pub fn control_space() -> Vec<u8> {
    let mut space = nix::cmsg_space!(in6_pktinfo, in_pktinfo);
    space.resize(space.capacity(), 0);
    space
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A socket to the tracker that is one client's alone, so that its answers tell whom they are for.
pub(super) fn upstream(
    mode: UdpRelayMode,
    client: SocketAddr,
    backend: SocketAddr,
) -> io::Result<UdpSocket> {
    let socket = unbound(backend)?;
    if mode == UdpRelayMode::Transparent {
        // Of both families; needs CAP_NET_ADMIN or CAP_NET_RAW.
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
        // The same client may ask several relays.
        socket.set_reuse_address(true)?;
        socket.bind(&client.into())?;
    }
    socket.connect(&backend.into())?;
    Ok(socket.into())
}
