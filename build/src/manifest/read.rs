//! Reads tables of a TOML document field by field; knows where everything stands.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::complaint::{Complaint, found, nearest};
use super::field::Field;

/// A value and where it stands.
pub(super) type Spot<T> = Spanned<T>;

/// A table whose fields are taken one by one.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    text: &'a str,
    /// How complaints call the table: `[host]`, `guest "web"`.
    name: String,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    fields: Vec<Field>,
    taken: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    /// Reads `table`; a field that is not among `fields` is refused.
    pub(super) fn new(
        text: &'a str,
        name: String,
        table: &'a DeTable<'a>,
        span: Range<usize>,
        fields: Vec<Field>,
    ) -> Result<Self, Complaint> {
        for (key, _) in table {
            if !fields.iter().any(|field| field.name == key.get_ref()) {
                let known = || fields.iter().map(|field| field.name);
                let advice = match nearest(key.get_ref(), known()) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("expected one of {}", known().collect::<Vec<_>>().join(", ")),
                };
                let message = format!("{name}: unknown field `{}`; {advice}", key.get_ref());
                return Err(Complaint::new(text, &key.span(), message));
            }
        }
        Ok(Self { text, name, table, span, fields, taken: RefCell::default() })
    }

    /// Where the table stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Fields that were asked for.
    #[cfg(test)]
    pub(super) fn taken(&self) -> Vec<String> {
        self.taken.borrow().clone()
    }

    /// A complaint about the value at `span` of `field`.
    pub(super) fn wrong(&self, span: &Range<usize>, field: &str, expected: &str) -> Complaint {
        let found = found(self.text, span);
        let message = format!("{}: `{field}` is {found}; expected {expected}", self.name);
        Complaint::new(self.text, span, message)
    }

    /// A complaint about how fields go together, at `span`.
    pub(super) fn clash(&self, span: &Range<usize>, message: &str) -> Complaint {
        Complaint::new(self.text, span, format!("{}: {message}", self.name))
    }

    /// What the documentation says of a field's values.
    fn limits(&self, name: &str) -> &str {
        self.fields.iter().find(|field| field.name == name).map_or("nothing", |field| &field.limits)
    }

    fn find(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.taken.borrow_mut().push(name.to_owned());
        self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    /// Insists on a field.
    pub(super) fn required<T>(&self, name: &str, value: Option<Spot<T>>) -> Result<Spot<T>, Complaint> {
        value.ok_or_else(|| {
            let meaning =
                self.fields.iter().find(|field| field.name == name).map_or("", |field| field.meaning);
            let message =
                format!("{}: `{name}` is missing ({meaning}); expected {}", self.name, self.limits(name));
            Complaint::new(self.text, &self.span, message)
        })
    }

    fn integer_of(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        range: &RangeInclusive<u64>,
        step: u64,
    ) -> Result<u64, Complaint> {
        let number = value.get_ref().as_integer();
        let number = number.and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.filter(|number| range.contains(number) && number.is_multiple_of(step));
        number.ok_or_else(|| self.wrong(&value.span(), name, self.limits(name)))
    }

    fn string_of(&self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Result<&'a str, Complaint> {
        value.get_ref().as_str().ok_or_else(|| self.wrong(&value.span(), name, self.limits(name)))
    }

    /// A number of `range`, a multiple of `step`.
    pub(super) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        step: u64,
    ) -> Result<Option<Spot<u64>>, Complaint> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let number = self.integer_of(name, value, &range, step)?;
        Ok(Some(Spanned::new(value.span(), number)))
    }

    /// A number of `range` that 32 bits hold, or its default.
    pub(super) fn small(
        &self,
        name: &str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, Complaint> {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let number = self.integer(name, range, 1)?;
        Ok(number.and_then(|number| u32::try_from(*number.get_ref()).ok()).unwrap_or(default))
    }

    /// A list of numbers of `range`.
    pub(super) fn integers(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Vec<Spot<u64>>, Complaint> {
        let list = self.list(name)?;
        let number = |value: &&Spanned<DeValue<'_>>| {
            self.integer_of(name, value, &range, 1).map(|number| Spanned::new(value.span(), number))
        };
        list.iter().map(number).collect()
    }

    /// A text.
    pub(super) fn string(&self, name: &str) -> Result<Option<Spot<&'a str>>, Complaint> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let text = self.string_of(name, value)?;
        Ok(Some(Spanned::new(value.span(), text)))
    }

    /// Printable ASCII of at most `limit` bytes.
    pub(super) fn ascii(&self, name: &str, limit: usize) -> Result<Option<Spot<&'a str>>, Complaint> {
        let text = self.string(name)?;
        match text {
            Some(text)
                if text.get_ref().len() > limit
                    || !text.get_ref().bytes().all(|byte| matches!(byte, b' '..=b'~')) =>
            {
                Err(self.wrong(&text.span(), name, self.limits(name)))
            }
            text => Ok(text),
        }
    }

    /// One of `names`, as its place among them; the first if the field is absent.
    pub(super) fn choice(&self, name: &str, names: &[&str]) -> Result<Option<Spot<usize>>, Complaint> {
        let Some(value) = self.find(name) else { return Ok(None) };
        self.chosen(name, value, names).map(|at| Some(Spanned::new(value.span(), at)))
    }

    /// A list of `names`, as their places among them; nothing if the field is absent.
    pub(super) fn choices(&self, name: &str, names: &[&str]) -> Result<Option<Vec<Spot<usize>>>, Complaint> {
        if !self.table.iter().any(|(key, _)| key.get_ref() == name) {
            self.taken.borrow_mut().push(name.to_owned());
            return Ok(None);
        }
        let list = self.list(name)?;
        let choose = |value: &&'a Spanned<DeValue<'a>>| {
            self.chosen(name, value, names).map(|at| Spanned::new(value.span(), at))
        };
        list.iter().map(choose).collect::<Result<Vec<_>, _>>().map(Some)
    }

    fn chosen(
        &self,
        name: &str,
        value: &'a Spanned<DeValue<'a>>,
        names: &[&str],
    ) -> Result<usize, Complaint> {
        let text = self.string_of(name, value)?;
        names.iter().position(|known| *known == text).ok_or_else(|| {
            let expected = match nearest(text, names.iter().copied()) {
                Some(near) => {
                    format!("{}: did you mean \"{near}\"?", super::field::one_of(names.iter().copied()))
                }
                None => super::field::one_of(names.iter().copied()),
            };
            self.wrong(&value.span(), name, &expected)
        })
    }

    /// The values of a list; none if the field is absent.
    pub(super) fn list(&self, name: &str) -> Result<Vec<&'a Spanned<DeValue<'a>>>, Complaint> {
        let Some(value) = self.find(name) else { return Ok(Vec::new()) };
        let values = value.get_ref().as_array();
        let values = values.ok_or_else(|| self.wrong(&value.span(), name, self.limits(name)))?;
        Ok(values.iter().collect())
    }

    /// A table within the table.
    pub(super) fn table(&self, name: &str, fields: Vec<Field>) -> Result<Option<Self>, Complaint> {
        let Some(value) = self.find(name) else { return Ok(None) };
        self.inner(name, format!("[{name}]"), value, fields).map(Some)
    }

    /// `value`, an element of the list `field`, as a table.
    pub(super) fn inner(
        &self,
        field: &str,
        name: String,
        value: &'a Spanned<DeValue<'a>>,
        fields: Vec<Field>,
    ) -> Result<Self, Complaint> {
        let table = value.get_ref().as_table();
        let table = table.ok_or_else(|| self.wrong(&value.span(), field, self.limits(field)))?;
        Reader::new(self.text, name, table, value.span(), fields)
    }

    /// A file's path with the text beside it: a string, or a table of both.
    pub(super) fn file(
        &self,
        name: &str,
        value: &'a Spanned<DeValue<'a>>,
        limit: usize,
    ) -> Result<(Spot<&'a str>, Option<Spot<&'a str>>), Complaint> {
        if let DeValue::String(path) = value.get_ref() {
            return Ok((Spanned::new(value.span(), path.as_ref()), None));
        }
        let table = self.inner(name, format!("{}, `{name}`", self.name), value, super::field::module())?;
        let path = table.string("file")?;
        Ok((table.required("file", path)?, table.ascii("text", limit)?))
    }
}
