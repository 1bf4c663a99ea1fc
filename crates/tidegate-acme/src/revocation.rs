//! Why a certificate is revoked, in the words of RFC 5280 §5.3.1.
//!
//! Only those that a subscriber may give; the others are for authorities.

/// Why a certificate is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RevocationReason {
    /// Nothing is said.
    #[default]
    Unspecified,
    /// Somebody else has the key.
    KeyCompromise,
    /// The names belong to another organisation now.
    AffiliationChanged,
    /// Another certificate took its place.
    Superseded,
    /// The names are not served any more.
    CessationOfOperation,
}

impl RevocationReason {
    /// Every reason, by its word.
    pub const ALL: &'static [(&'static str, Self)] = &[
        ("unspecified", Self::Unspecified),
        ("keyCompromise", Self::KeyCompromise),
        ("affiliationChanged", Self::AffiliationChanged),
        ("superseded", Self::Superseded),
        ("cessationOfOperation", Self::CessationOfOperation),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, reason)| *reason == self)
            .map_or("unspecified", |(word, _)| word)
    }

    /// The reason of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(word))
            .map(|(_, reason)| *reason)
    }

    /// As the protocol has it; nothing where nothing is said (RFC 5280 wants the entry left out).
    pub(crate) fn wire(self) -> Option<instant_acme::RevocationReason> {
        use instant_acme::RevocationReason as Wire;
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(Wire::KeyCompromise),
            Self::AffiliationChanged => Some(Wire::AffiliationChanged),
            Self::Superseded => Some(Wire::Superseded),
            Self::CessationOfOperation => Some(Wire::CessationOfOperation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back() {
        for (word, reason) in RevocationReason::ALL {
            assert_eq!(RevocationReason::parse(word), Some(*reason));
            assert_eq!(reason.as_str(), *word);
        }
        assert_eq!(
            RevocationReason::parse("keycompromise"),
            Some(RevocationReason::KeyCompromise)
        );
        // An authority's alone.
        assert_eq!(RevocationReason::parse("cACompromise"), None);
    }
}
