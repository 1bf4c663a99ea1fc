//! Bytes come out as they went in.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn bytes_pass_both_ways() {
    let (client, server) = tokio::io::duplex(1000);
    let mut client = WebSocketStream::new(client, Role::Client);
    let mut server = WebSocketStream::new(server, Role::Server);
    let there: Vec<u8> = (0..300_000_u32)
        .map(|n| n.to_le_bytes()[0] ^ 0x5a)
        .collect();
    let expected = there.clone();
    let writes = tokio::spawn(async move {
        client.write_all(&there).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = String::new();
        client.read_to_string(&mut back).await.unwrap();
        back
    });
    let mut found = Vec::new();
    server.read_to_end(&mut found).await.unwrap();
    assert!(found == expected);
    drop(server);
    assert_eq!(writes.await.unwrap(), "");
}
