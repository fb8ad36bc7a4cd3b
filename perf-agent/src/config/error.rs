//! Why a configuration is refused, with the place and, where one is close, the word that was meant.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_saphyr::{Error, MessageFormatter as _, UserMessageFormatter};

#[derive(Debug)]
pub(crate) enum ConfigError {
    Unreadable { path: PathBuf, source: std::io::Error },
    Invalid { path: PathBuf, line: u64, column: u64, message: String },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, .. } => write!(f, "the configuration {} cannot be read", path.display()),
            Self::Invalid { path, line, column, message } => {
                write!(f, "{}:{line}:{column}: {message}", path.display())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Invalid { .. } => None,
        }
    }
}

impl ConfigError {
    pub(super) fn invalid(path: &Path, error: &Error) -> Self {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        Self::Invalid { path: path.to_owned(), line, column, message: message(error) }
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key `{field}`; {}", suggestion(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value `{variant}`; {}", suggestion(variant, expected))
        }
        // The parser names Rust's types here.
        Error::InvalidScalar { ty, .. } => match *ty {
            "bool" | "boolean" => "neither true nor false".to_owned(),
            "f32" | "f64" | "floating point" => "not a number".to_owned(),
            ty if ty.starts_with(['i', 'u']) => "not a whole number".to_owned(),
            ty => format!("not a {ty}"),
        },
        other => one_line(&UserMessageFormatter.format_message(other)),
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn suggestion(word: &str, known: &[&str]) -> String {
    let closest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), candidate), candidate))
        .min_by_key(|(distance, _)| *distance);
    match closest {
        // A third of the letters wrong is a typo; more is another word.
        Some((distance, candidate)) if distance <= candidate.len().div_ceil(3) => {
            format!("did you mean `{candidate}`?")
        }
        _ => format!("known here: {}", known.join(", ")),
    }
}
