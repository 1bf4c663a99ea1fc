//! The file of an agent, as it is written.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{SeqAccess, Visitor};

use super::ConfigError;

/// Larger files are something else.
const LARGEST: u64 = 1 << 20;

/// The fields of the file; nothing is checked yet.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names that people write")]
pub(super) struct File {
    #[serde(default)]
    pub(super) edge: OneOrMore,
    pub(super) agent: Option<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) proxy: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) links: Option<u64>,
    pub(super) status: Option<String>,
    #[serde(default)]
    pub(super) allow_targets: OneOrMore,
    #[serde(default)]
    pub(super) mappings: Vec<FileMapping>,
}

/// A mapping that the agent asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileMapping {
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) hostname: String,
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) target: String,
    pub(super) proxy_protocol: Option<String>,
    #[serde(default)]
    pub(super) insecure_skip_verify: bool,
    pub(super) description: Option<String>,
}

/// A text, or a list of texts.
#[derive(Debug, Default)]
pub(super) struct OneOrMore(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_unit<E>(self) -> Result<OneOrMore, E> {
                Ok(OneOrMore::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// Reads the file; relative paths in it start at its folder.
pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    let form = |found: String| ConfigError::Form {
        path: path.to_owned(),
        found,
    };
    if size > LARGEST {
        return Err(form(format!("{size} bytes are no configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut file = parse(&text).map_err(form)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for inside in [&mut file.token_file, &mut file.ca_file]
        .into_iter()
        .flatten()
    {
        *inside = folder.join(&*inside);
    }
    Ok(file)
}

pub(super) fn parse(text: &str) -> Result<File, String> {
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}
