//! What is wrong with a policy, and where: line, column, field, what was found and what was expected.

use std::fmt;
use std::ops::Range;

/// Most characters of what was found that are repeated.
const SHOWN: usize = 48;

/// Why a policy cannot be used: a place in its text, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    line: usize,
    column: usize,
    field: String,
    message: String,
    shown: String,
}

impl PolicyError {
    /// A complaint about the bytes `span` of `text`, which are the value of `field`.
    pub(super) fn new(text: &str, span: &Range<usize>, field: &str, message: String) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
        Self {
            line: before.matches('\n').count().saturating_add(1),
            column: before.get(line_start..).unwrap_or_default().chars().count().saturating_add(1),
            field: field.to_owned(),
            message,
            shown: text
                .get(line_start..)
                .and_then(|rest| rest.lines().next())
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
        }
    }

    /// The line, from 1.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// The column, in characters from 1.
    #[must_use]
    pub const fn column(&self) -> usize {
        self.column
    }

    /// The field, as a path such as `guests.demo.g0`; empty where the text is no TOML.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl std::error::Error for PolicyError {}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)?;
        if !self.shown.trim().is_empty() {
            write!(f, "\n  {}", self.shown)?;
        }
        Ok(())
    }
}

/// What `span` covers, short enough to be repeated.
pub(super) fn found(text: &str, span: &Range<usize>) -> String {
    let line = text.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
    if line.chars().count() <= SHOWN {
        return line.to_owned();
    }
    let start: String = line.chars().take(SHOWN).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_names_line_and_column_and_shows_the_line() {
        let text = "one = 1\ntwo = \"x\" # why\n";
        let at = text.find("\"x\"").unwrap();
        let error = PolicyError::new(text, &(at..at + 3), "two", "`two` is \"x\"; expected 1".to_owned());
        assert_eq!((error.line(), error.column(), error.field()), (2, 7, "two"));
        assert_eq!(error.to_string(), "line 2, column 7: `two` is \"x\"; expected 1\n  two = \"x\" # why");
    }

    #[test]
    fn a_place_outside_of_the_text_is_no_trouble() {
        for span in [0..0, 100..200, 3..400] {
            assert!(!PolicyError::new("abc", &span, "", "m".to_owned()).to_string().is_empty());
        }
    }

    #[test]
    fn what_was_found_is_cut_short() {
        assert_eq!(found("abc", &(0..2)), "ab");
        assert_eq!(found(&"x".repeat(100), &(0..100)).chars().count(), SHOWN + 1);
    }
}
