//! How a link is set up: constants of HTTP/2 and of its socket, each with the reason it has this value.
//!
//! h2's defaults are made for strangers; between edge and agent they end a healthy link or let one visitor stop all
//! others. What guards against strangers here is elsewhere: the edge's listeners, and the budget of `link::stall`.
//! Windows, streams, pending resets and header fields each have a test in `link::tests` that fails with the default.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// What one stream may have in flight, and what one stream that nobody reads may cost: 160 Mbit/s at a round trip of
/// 50 ms. More fills the kernel's buffers, and small requests queue behind downloads.
pub const STREAM_WINDOW: u32 = 1024 * 1024;

/// As large as HTTP/2 knows. With any smaller one, a few visitors that stop reading stop all others of the link; and
/// half of it is what h2 lets lie unread in small DATA frames before it ends the connection.
/// Memory is bounded by [`STREAM_WINDOW`] and the stall budget instead.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Fewer frames for bulk, and still less than a millisecond of a 300 Mbit/s uplink for whoever comes next.
pub const MAX_FRAME: u32 = 32 * 1024;

/// Streams of one link: upgraded ones and long polls of a busy service. hyper stops at 200.
pub const MAX_STREAMS: u32 = 10_000;

/// Visitors leave in bursts while the agent is busy. With h2's default of 20 such resets it would take them for an
/// attack and end the link.
pub const MAX_PENDING_RESETS: usize = 10_000;

/// Streams whose reset is remembered, so that late frames for them are no protocol error. h2's default is 10 (50 in
/// newer ones): a burst of visitors who left during downloads is more.
pub const MAX_REMEMBERED_RESETS: usize = 1_024;

/// Fields of one request or response. Cookies and tokens of real applications exceed hyper's 16 KiB.
pub const MAX_HEADERS: u32 = 64 * 1024;

/// What h2 takes from a sender beyond the window.
pub const MAX_SEND_BUFFER: usize = 256 * 1024;

/// A link on which nothing was read for so long is asked whether it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Time for the answer to that.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A link on which no byte arrived for so long is dead, also where h2 cannot say so because it cannot write.
pub const DEAD_AFTER: Duration = KEEP_ALIVE.saturating_add(KEEP_ALIVE_TIMEOUT);

/// The edge pings on the control stream at this pace, whatever else happens: so both ends read something more often
/// than [`DEAD_AFTER`].
pub const PING_EVERY: Duration = Duration::from_secs(2);

/// Time from the 101 to the agent's Hello, and to the edge's control stream.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// What the kernel may hold unsent. More of it and small requests wait behind bulk that cannot be recalled.
pub const NOT_SENT_LOW_WATER: u32 = 128 * 1024;

/// Unacknowledged data for so long means a dead peer.
pub const USER_TIMEOUT: Duration = Duration::from_secs(8);

/// The edge's end: it opens streams.
pub fn edge() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        // The agent opens none.
        .enable_push(false)
        .max_concurrent_streams(0)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    builder
}

/// The agent's end: it answers. It sends no HTTP/2 pings of its own: an end that owes an answer to a ping reads
/// nothing until it could write, and two such ends wait for each other when both directions are full.
pub fn agent() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .enable_connect_protocol();
    builder
}

/// Sets a link's socket up. Kernels that lack an option work without it.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(socket);
        if let Err(error) = socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER) {
            tracing::debug!(%error, "the kernel has no TCP_NOTSENT_LOWAT");
        }
        if let Err(error) = socket.set_tcp_user_timeout(Some(USER_TIMEOUT)) {
            tracing::debug!(%error, "the kernel has no TCP_USER_TIMEOUT");
        }
    }
    Ok(())
}
