//! Opening the ports.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::ListenAddress;

/// What the kernel holds for one client that does not read. It would grow to megabytes by itself; the rest of a page
/// waits in the agent, where clients share it.
const SEND_BUFFER: usize = 256 << 10;
const BACKLOG: i32 = 256;

/// Listens on the address; call it within the runtime. An error says which address and what helps.
pub(crate) fn bind(address: &ListenAddress) -> Result<TcpListener> {
    let candidates = address.candidates().with_context(|| format!("{address} cannot be resolved"))?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in candidates {
        match listen(candidate) {
            Ok(listener) => return TcpListener::from_std(listener).context("the runtime takes no listener"),
            // A port that is taken on one address is not to be opened on half of the others.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                last = error;
                break;
            }
            Err(error) => last = error,
        }
    }
    let remedy = remedy(last.kind());
    Err(last).with_context(|| format!("cannot listen on {address}: {remedy}"))
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `:9100` is IPv4 as well, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restarted agent does not wait for the last connections of the previous one.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Connections inherit both: a reader that is gone or reads nothing is dropped by the kernel, too.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_user_timeout(Some(super::WRITE_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => {
            "stop what listens there (node_exporter has the same port), or choose another by --web.listen-address"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another by --web.listen-address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface has this address; choose another by --web.listen-address"
        }
        _ => "choose another address by --web.listen-address",
    }
}
