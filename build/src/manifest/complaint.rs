//! What is wrong with a manifest, and where: line, column, field, what was found and what was expected.

use std::fmt;
use std::ops::Range;

/// A complaint about a place in a text; shows the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    line: usize,
    column: usize,
    width: usize,
    shown: String,
    message: String,
}

impl Complaint {
    /// A complaint about the bytes `span` of `text`.
    pub(super) fn new(text: &str, span: &Range<usize>, message: String) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
        let shown = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let found = found(text, span);
        Self {
            line: before.matches('\n').count().saturating_add(1),
            column: before.get(line_start..).unwrap_or_default().chars().count().saturating_add(1),
            width: found.chars().count().max(1),
            shown: shown.to_owned(),
            message,
        }
    }

    /// The complaint with the file's name before its place.
    pub(super) fn in_file(&self, path: &str) -> String {
        format!("{path}:{}:{}: {self}", self.line, self.column)
    }
}

impl std::error::Error for Complaint {}

/// The first line of what `span` covers.
pub(super) fn found<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
    text.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default()
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs before the place are kept, so that the mark stands under it.
        let kept = self.shown.chars().take(self.column.saturating_sub(1));
        let pad: String = kept.map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{}", self.message)?;
        writeln!(f, " {margin} |")?;
        writeln!(f, " {number} | {}", self.shown)?;
        write!(f, " {margin} | {pad}{}", "^".repeat(self.width))
    }
}

/// The name among `known` that is nearest to `name`, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = name.chars().count().max(3) / 2;
    known.map(|other| (distance(name, other), other)).filter(|(d, _)| *d <= far).min().map(|(_, other)| other)
}

/// Letters to change, add or drop to make `b` of `a`; two letters that changed places are one change.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i.saturating_add(1)];
        for (j, y) in b.iter().enumerate() {
            let at = |row: Option<&Vec<usize>>, j: usize| {
                row.and_then(|row| row.get(j)).copied().unwrap_or(usize::MAX)
            };
            let above = rows.last();
            let mut least = at(above, j).saturating_add(usize::from(x != y));
            least = least.min(at(above, j.saturating_add(1)).saturating_add(1));
            least = least.min(at(Some(&row), j).saturating_add(1));
            if let (Some(i1), Some(j1)) = (i.checked_sub(1), j.checked_sub(1))
                && a.get(i1) == Some(y)
                && b.get(j1) == Some(x)
            {
                least = least.min(at(rows.get(i1), j1).saturating_add(1));
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_shows_the_line_and_marks_the_place() {
        let text = "one = 1\n\ttwo = \"x\"\n";
        let at = text.find("\"x\"").unwrap();
        let complaint = Complaint::new(text, &(at..at + 3), "no".to_owned());
        assert_eq!(complaint.to_string(), "no\n   |\n 2 | \ttwo = \"x\"\n   | \t      ^^^");
        assert_eq!(complaint.in_file("a.toml").lines().next(), Some("a.toml:2:8: no"));
    }

    #[test]
    fn a_place_outside_of_the_text_is_no_trouble() {
        for span in [0..0, 100..200, 3..400] {
            assert!(!Complaint::new("abc", &span, String::new()).to_string().is_empty());
        }
    }

    #[test]
    fn the_nearest_name_is_found_unless_none_is_near() {
        let known = ["memory_mib", "vcpus", "kernel"];
        for (name, want) in [
            ("memory_mb", Some("memory_mib")),
            ("memroy_mib", Some("memory_mib")),
            ("vcpu", Some("vcpus")),
            ("Kernel", Some("kernel")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(name, known.into_iter()), want, "{name}");
        }
    }
}
