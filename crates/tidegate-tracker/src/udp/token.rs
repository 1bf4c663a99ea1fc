//! Which socket an event is of, packed into the word that the kernel keeps with it.

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Session,
    /// Of a trial of a way; the place tells which way and which socket.
    Trial,
}

/// A socket of a relay: 32 bits of the relay's number, which is never used again, 2 of the source, 30 of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(usize);

const PLACE_BITS: u32 = 30;
const RELAY_BITS: u32 = 32;

impl Token {
    /// The engine's own, to be woken.
    pub(super) const WAKE: mio::Token = mio::Token(usize::MAX);

    pub(super) fn new(relay: u32, source: Source, place: usize) -> Self {
        let source = match source {
            Source::Listener => 0,
            Source::Session => 1,
            Source::Trial => 2,
        };
        Self(((relay as usize) << RELAY_BITS) | (source << PLACE_BITS) | place)
    }

    pub(super) fn parts(self) -> (u32, Source, usize) {
        let relay = u32::try_from(self.0 >> RELAY_BITS).unwrap_or_default();
        let source = match (self.0 >> PLACE_BITS) & 3 {
            0 => Source::Listener,
            1 => Source::Session,
            _ => Source::Trial,
        };
        (relay, source, self.0 & ((1 << PLACE_BITS) - 1))
    }
}

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        Self(token.0)
    }
}

impl From<mio::Token> for Token {
    fn from(token: mio::Token) -> Self {
        Self(token.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        for source in [Source::Listener, Source::Session, Source::Trial] {
            for (relay, place) in [(0, 0), (7, 65_535), (u32::MAX - 1, (1 << 30) - 1)] {
                let token = Token::new(relay, source, place);
                assert_eq!(Token::from(mio::Token::from(token)), token);
                assert_eq!(token.parts(), (relay, source, place));
                assert_ne!(mio::Token::from(token), Token::WAKE);
            }
        }
    }
}
