//! Messages come out as they went in, those of the future do no harm, and no input is too strange.

use super::*;

fn content(frame: &Bytes) -> &[u8] {
    &frame[4..]
}

#[test]
fn a_message_comes_out_as_it_went_in() {
    let hello = FromAgent::from(Hello {
        version: "1.2.3".to_owned(),
        instance: "ab".repeat(16),
        link: 1,
        os: "linux".to_owned(),
        arch: "aarch64".to_owned(),
        features: vec!["one".to_owned(), "two".to_owned()],
    });
    let bytes = hello.encode().unwrap();
    assert_eq!(FromAgent::decode(content(&bytes)).unwrap(), Some(hello));
}
