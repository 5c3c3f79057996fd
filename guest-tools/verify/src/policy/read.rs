//! Reads tables of a policy field by field; knows where everything stands.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::complaint::{PolicyError, found};

/// A value and where it stands.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// One table of the policy.
#[derive(Debug)]
pub(super) struct Table<'a> {
    text: &'a str,
    path: String,
    table: &'a DeTable<'a>,
    span: Range<usize>,
}

impl<'a> Table<'a> {
    /// The whole file. A field that is not among `known` is refused, here and in every other table.
    pub(super) fn top(
        text: &'a str,
        table: &'a Spanned<DeTable<'a>>,
        known: &[&str],
    ) -> Result<Self, PolicyError> {
        let all = Self { text, path: String::new(), table: table.get_ref(), span: table.span() };
        all.knows_only(known)?;
        Ok(all)
    }

    fn knows_only(&self, known: &[&str]) -> Result<(), PolicyError> {
        let Some(key) = self.table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let field = self.field(key.get_ref());
        let message = format!("there is no field `{field}`; expected one of {}", known.join(", "));
        Err(PolicyError::new(self.text, &key.span(), &field, message))
    }

    /// The full name of a field in this table.
    pub(super) fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A complaint about the value at `span` of field `name`.
    pub(super) fn wrong(&self, span: &Range<usize>, name: &str, expected: &str) -> PolicyError {
        let field = self.field(name);
        let message = format!("`{field}` is {}; expected {expected}", found(self.text, span));
        PolicyError::new(self.text, span, &field, message)
    }

    /// A complaint about what `name` has to do with others.
    pub(super) fn clash(&self, name: &str, message: &str) -> PolicyError {
        let span = self.find(name).map_or_else(|| self.span.clone(), Spanned::span);
        let field = self.field(name);
        PolicyError::new(self.text, &span, &field, format!("`{field}`: {message}"))
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    pub(super) fn find(&self, name: &str) -> Option<&'a Value<'a>> {
        self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    /// Names of this table's fields.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.table.keys().map(|key| key.get_ref().as_ref())
    }

    /// The values of a list, or the one value that stands for a list of one; none if the field is absent.
    pub(super) fn one_or_more(&self, name: &str) -> Vec<&'a Value<'a>> {
        match self.find(name) {
            None => Vec::new(),
            Some(value) => {
                value.get_ref().as_array().map_or_else(|| vec![value], |list| list.iter().collect())
            }
        }
    }

    /// Values of exactly `N` bytes, in hex: one or a list. A list without one is refused.
    pub(super) fn digests<const N: usize>(&self, name: &str) -> Result<Vec<[u8; N]>, PolicyError> {
        let values: Vec<[u8; N]> = self
            .one_or_more(name)
            .into_iter()
            .map(|value| self.digest(name, value))
            .collect::<Result<_, _>>()?;
        match self.find(name) {
            Some(list) if values.is_empty() => {
                Err(self.wrong(&list.span(), name, "at least one value: an empty list accepts nothing"))
            }
            _ => Ok(values),
        }
    }

    fn digest<const N: usize>(&self, name: &str, value: &Value<'_>) -> Result<[u8; N], PolicyError> {
        let mut bytes = [0; N];
        let decoded =
            value.get_ref().as_str().is_some_and(|text| hex::decode_to_slice(text, &mut bytes).is_ok());
        let expected = || format!("{N} bytes in hex ({} digits)", N.saturating_mul(2));
        if decoded { Ok(bytes) } else { Err(self.wrong(&value.span(), name, &expected())) }
    }

    /// A text, or nothing if the field is absent.
    pub(super) fn string(&self, name: &str, expected: &str) -> Result<Option<&'a str>, PolicyError> {
        self.find(name).map(|value| self.string_of(name, value, expected)).transpose()
    }

    /// A value of field `name` as text.
    pub(super) fn string_of(
        &self,
        name: &str,
        value: &'a Value<'a>,
        expected: &str,
    ) -> Result<&'a str, PolicyError> {
        value.get_ref().as_str().ok_or_else(|| self.wrong(&value.span(), name, expected))
    }

    /// A number that `T` holds, or nothing if the field is absent.
    pub(super) fn number<T: TryFrom<u64>>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, PolicyError> {
        self.find(name).map(|value| self.number_of(name, value, expected)).transpose()
    }

    /// A value of field `name` as a number.
    pub(super) fn number_of<T: TryFrom<u64>>(
        &self,
        name: &str,
        value: &Value<'_>,
        expected: &str,
    ) -> Result<T, PolicyError> {
        let number = value.get_ref().as_integer();
        let number = number.and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.wrong(&value.span(), name, expected))
    }

    /// True or false; false if the field is absent.
    pub(super) fn flag(&self, name: &str) -> Result<bool, PolicyError> {
        let Some(value) = self.find(name) else { return Ok(false) };
        value.get_ref().as_bool().ok_or_else(|| self.wrong(&value.span(), name, "true or false"))
    }

    /// A table in this one.
    pub(super) fn table(&self, name: &str, known: &[&str]) -> Result<Option<Self>, PolicyError> {
        self.find(name).map(|value| self.inner(name, value, Some(known))).transpose()
    }

    /// A table in this one whose fields may have any name.
    pub(super) fn open_table(&self, name: &str) -> Result<Option<Self>, PolicyError> {
        self.find(name).map(|value| self.inner(name, value, None)).transpose()
    }

    /// A list of tables; none if the field is absent.
    pub(super) fn tables(&self, name: &str, known: &[&str]) -> Result<Vec<Self>, PolicyError> {
        let Some(value) = self.find(name) else { return Ok(Vec::new()) };
        let list = value.get_ref().as_array();
        let list = list.ok_or_else(|| self.wrong(&value.span(), name, "a list of tables"))?;
        list.iter().map(|value| self.inner(name, value, Some(known))).collect()
    }

    fn inner(&self, name: &str, value: &'a Value<'a>, known: Option<&[&str]>) -> Result<Self, PolicyError> {
        let table = value.get_ref().as_table();
        let table = table.ok_or_else(|| self.wrong(&value.span(), name, "a table"))?;
        let inner = Self { text: self.text, path: self.field(name), table, span: value.span() };
        if let Some(known) = known {
            inner.knows_only(known)?;
        }
        Ok(inner)
    }
}
