//! One way to write a structure, so that its documentation can be generated and checked.

/// One field of a structure, for the tables of `docs/abi.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Offset in bytes from the start of the structure.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// What it means.
    pub meaning: &'static str,
}

/// A structure that knows its own table.
pub trait Layout {
    /// Name of the structure.
    const NAME: &'static str;
    /// Its fields in order.
    const FIELDS: &'static [Field];
}

/// Defines structures of the interface: C layout, no padding (zerocopy refuses it), every field public.
macro_rules! wire {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ pub $field:ident: $type:ty, )*
        }
    )*) => { $(
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )*
        }

        impl $crate::Layout for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::Field] = &[ $( $crate::Field {
                name: stringify!($field),
                offset: core::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
                meaning: concat!($($doc),+),
            }, )* ];
        }
    )* };
}

pub(crate) use wire;
