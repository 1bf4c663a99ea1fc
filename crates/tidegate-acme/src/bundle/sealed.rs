//! The envelope of an export: a header that says how, then AES-256-GCM under a key from a passphrase.
//!
//! ```text
//! "TGEXPORT" | version u8 | Argon2id: KiB u32, passes u32, lanes u32 | salt 16 | nonce 12 | length u64
//! | ciphertext with tag (length bytes) | SHA-256 of all before
//! ```
//!
//! Numbers are big-endian; everything before the ciphertext is authenticated with it. The digest protects
//! nothing: it tells a damaged file from a wrong passphrase. Reading allocates no more than the limits here
//! allow, whatever a header says. Knows nothing of what is inside. ADR 0030 tells why it is not `age`.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use tidegate_model::Secret;

use super::BundleError;

const MAGIC: &[u8; 8] = b"TGEXPORT";
const VERSION: u8 = 1;
const SALT: usize = 16;
const TAG: usize = 16;
const DIGEST: usize = 32;
const HEADER: usize = MAGIC.len() + 1 + 3 * 4 + SALT + NONCE_LEN + 8;

/// The longest export, in bytes: tens of thousands of certificates.
pub const LONGEST: u64 = 256 * 1024 * 1024;
/// Characters that a passphrase must have when an export is made.
pub const SHORTEST_PASSPHRASE: usize = 8;

/// What deriving the key costs whoever guesses, and us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
}

/// RFC 9106 §4, the choice for machines with little memory, with one lane: it is computed on one core.
pub(super) const COST: Cost = Cost {
    memory_kib: 64 * 1024,
    passes: 3,
    lanes: 1,
};

impl Cost {
    /// Refuses what would need too much memory or time, or would protect nothing.
    fn check(self) -> Result<(), BundleError> {
        let refuse = |what, asked: u32| Err(BundleError::Cost { what, asked });
        match self {
            Self { memory_kib, .. } if !(8 * 1024..=512 * 1024).contains(&memory_kib) => {
                refuse("KiB of memory", memory_kib)
            }
            Self { passes, .. } if !(1..=16).contains(&passes) => refuse("passes", passes),
            Self { lanes, .. } if !(1..=16).contains(&lanes) => refuse("lanes", lanes),
            _ => Ok(()),
        }
    }

    fn key(self, passphrase: &Secret<String>, salt: &[u8]) -> Result<LessSafeKey, BundleError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(BundleError::Derive)?;
        let mut key = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.expose().as_bytes(), salt, &mut key)
            .map_err(BundleError::Derive)?;
        let unbound = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| BundleError::Encrypt)?;
        Ok(LessSafeKey::new(unbound))
    }
}

/// Encrypts. Takes the time and memory of `cost`.
pub(super) fn seal(
    mut content: Vec<u8>,
    passphrase: &Secret<String>,
    cost: Cost,
) -> Result<Vec<u8>, BundleError> {
    if passphrase.expose().chars().count() < SHORTEST_PASSPHRASE {
        return Err(BundleError::ShortPassphrase);
    }
    let mut salt = [0; SALT];
    let mut nonce = [0; NONCE_LEN];
    for random in [&mut salt[..], &mut nonce[..]] {
        aws_lc_rs::rand::fill(random).map_err(|_| BundleError::Encrypt)?;
    }
    let length = content.len() + TAG;
    let mut file = Vec::with_capacity(HEADER + length + DIGEST);
    file.extend_from_slice(MAGIC);
    file.push(VERSION);
    for number in [cost.memory_kib, cost.passes, cost.lanes] {
        file.extend_from_slice(&number.to_be_bytes());
    }
    file.extend_from_slice(&salt);
    file.extend_from_slice(&nonce);
    file.extend_from_slice(&(length as u64).to_be_bytes());
    cost.key(passphrase, &salt)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&file[..]),
            &mut content,
        )
        .map_err(|_| BundleError::Encrypt)?;
    file.append(&mut content);
    let digest = Sha256::digest(&file);
    file.extend_from_slice(&digest);
    Ok(file)
}

/// Decrypts.
pub(super) fn open(
    file: &[u8],
    passphrase: &Secret<String>,
) -> Result<Secret<Vec<u8>>, BundleError> {
    let mut rest = file;
    if rest.len() < MAGIC.len() || take(&mut rest, MAGIC.len())? != MAGIC {
        return Err(BundleError::Foreign);
    }
    match take(&mut rest, 1)? {
        [VERSION] => {}
        other => return Err(BundleError::Version(other.first().copied().unwrap_or(0))),
    }
    let cost = Cost {
        memory_kib: number(&mut rest)?,
        passes: number(&mut rest)?,
        lanes: number(&mut rest)?,
    };
    let salt = take(&mut rest, SALT)?;
    let nonce = take(&mut rest, NONCE_LEN)?;
    let length = take(&mut rest, 8)?
        .iter()
        .fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    if length > LONGEST || file.len() as u64 > LONGEST {
        return Err(BundleError::TooLong);
    }
    let found = rest.len() as u64;
    let expected = length + DIGEST as u64;
    if found < expected {
        return Err(BundleError::Cut {
            missing: expected - found,
        });
    }
    let (signed, digest) = file.split_at(file.len() - DIGEST);
    if found > expected || Sha256::digest(signed)[..] != *digest {
        return Err(BundleError::Damaged);
    }
    cost.check()?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| BundleError::Damaged)?;
    let mut content = signed[HEADER..].to_vec();
    let plain = cost
        .key(passphrase, salt)?
        .open_in_place(nonce, Aad::from(&file[..HEADER]), &mut content)
        .map_err(|_| BundleError::Passphrase)?
        .len();
    content.truncate(plain);
    Ok(Secret::new(content))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], BundleError> {
    let (taken, left) = rest
        .split_at_checked(count)
        .ok_or_else(|| BundleError::Cut {
            missing: (count - rest.len()) as u64,
        })?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> Result<u32, BundleError> {
    let bytes = take(rest, 4)?;
    Ok(bytes
        .iter()
        .fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}
