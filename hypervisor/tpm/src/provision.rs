//! Makes the sealing root persistent: once, by the TPM's owner, before Dolmen is launched. No part of the hypervisor.
//!
//! Input: a TPM at any locality, with its other users' sessions and objects, which are left alone; the PCR 17 that the
//! launch will have; the owner's authorisation value.
//! Promise: the key was made by the TPM to the exact template of a launch with that PCR 17, and is persistent where it was
//! wanted; an object that was there before is still there. The owner's value proves itself by an HMAC under a session
//! that is salted to a key of this moment: it does not cross the bus.
//! Failure: any deviation is an error; what was made half is not persistent.
//! Specification: TPM 2.0 library, part 1, 17 to 21; part 3, 24.1 and 28.5.

use core::fmt;
use core::ops::RangeInclusive;

use crate::command::flush;
use crate::constant::{ResponseCode, cc, handle};
use crate::crypto::SHA256_SIZE;
use crate::error::{During, KeyError, KeyRole};
use crate::exchange::Exchange;
use crate::keys::{Maker, Provisioned, Setup, check_persistent, read_persistent};
use crate::permanent::Permanent;
use crate::policy::launch_policy;
use crate::public::{Name, Template};
use crate::response::TpmError;
use crate::session::{Call, Entity, MAX_VALUE};
use crate::transport::Transport;

/// Handles that an owner can make a key persistent at; the others are the platform's (part 3, 28.5).
pub const HANDLES: RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;

/// What the owner wants.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// PCR 17 of the SHA-256 bank, as the launches will have it.
    pub pcr17: [u8; SHA256_SIZE],
    /// The persistent handle, one of [`HANDLES`].
    pub handle: u32,
    /// The owner hierarchy's authorisation value; empty if it has none.
    pub value: &'a [u8],
    /// Randomness that the TPM does not know.
    pub entropy: [u8; 32],
}

impl fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the manifest must name.
    pub root: Provisioned,
    /// The very same key was there before.
    pub was_there: bool,
}

/// Why there is no provisioned sealing root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvisionError {
    /// The owner hierarchy has an authorisation value, and none was given.
    NoValue,
    /// Longer than any authorisation value can be.
    LongValue,
    /// The TPM does not take the value as the owner's.
    WrongValue,
    /// Something else is at this handle.
    Occupied(u32),
    /// There is no room for another persistent key.
    NoRoom,
    /// The command with this code (TPM_CC) failed.
    Command(u32, TpmError),
    /// The key is not what it must be.
    Key(KeyError),
}

impl From<KeyError> for ProvisionError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::HierarchyHasAuth(KeyRole::Root) => Self::WrongValue,
            KeyError::Command(cc::EVICT_CONTROL, TpmError::Refused(ResponseCode::NV_SPACE)) => Self::NoRoom,
            KeyError::Command(code, error) => Self::Command(code, error),
            KeyError::BankOff
            | KeyError::NotThisLaunch
            | KeyError::WrongLocality
            | KeyError::HierarchyHasAuth(_)
            | KeyError::NotTheTemplate(..)
            | KeyError::WrongName(_)
            | KeyError::NotProvisioned(_)
            | KeyError::NoSeed => Self::Key(error),
        }
    }
}

impl fmt::Display for ProvisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue => f.write_str("the owner hierarchy has an authorisation value, and none was given"),
            Self::LongValue => write!(f, "no authorisation value is longer than {MAX_VALUE} bytes"),
            Self::WrongValue => f.write_str("this is not the owner hierarchy's authorisation value"),
            Self::Occupied(handle) => write!(
                f,
                "something else is at {handle:#x}, and is left there; choose another handle, or evict it (tpm2_evictcontrol -C o -c {handle:#x})"
            ),
            Self::NoRoom => f.write_str(
                "the TPM has no room for another persistent key; evict one that nobody needs (tpm2_getcap handles-persistent)",
            ),
            Self::Command(code, error) => {
                write!(f, "TPM command {code:#x} failed: {error:?}; check that the TPM works, and that its owner hierarchy is enabled")
            }
            Self::Key(error) => error.fmt(f),
        }
    }
}

/// Makes the sealing root of launches with this PCR 17, and makes it persistent. Blocks.
///
/// # Errors
/// [`ProvisionError`] names the cause and has the remedy.
pub fn provision(tpm: &mut impl Transport, order: &Order<'_>) -> Result<Outcome, ProvisionError> {
    let permanent = Permanent::read(tpm).during(cc::GET_CAPABILITY)?;
    if permanent.has_owner_value() && order.value.is_empty() {
        return Err(ProvisionError::NoValue);
    }
    let setup = Setup { pcr17: order.pcr17, cpu_entropy: &order.entropy, provisioned: None };
    let mut maker = Maker::new(tpm, &setup)?;
    let outcome = match maker.session.authorise(order.value) {
        Ok(()) => make(&mut maker, order),
        Err(_) => Err(ProvisionError::LongValue),
    };
    let flushed = flush(maker.tpm, maker.session.handle()).during(cc::FLUSH_CONTEXT);
    let outcome = outcome?;
    flushed?;
    // As a launch will look at it.
    check_persistent(tpm, &launch_policy(&order.pcr17), &outcome.root)?;
    Ok(outcome)
}

fn make<T: Transport>(maker: &mut Maker<'_, T>, order: &Order<'_>) -> Result<Outcome, ProvisionError> {
    let policy = launch_policy(&order.pcr17);
    let template = Template::sealing_root(&policy).during(cc::CREATE_PRIMARY)?;
    let (key, public, name) = maker.primary(handle::OWNER, &template, KeyRole::Root)?;
    let stored = match occupant(maker.tpm, order.handle, public.bytes()) {
        Ok(Occupant::Nothing) => evict_control(maker, key, name, order.handle).map(|()| false),
        Ok(Occupant::Same) => Ok(true),
        Ok(Occupant::Other) => Err(ProvisionError::Occupied(order.handle)),
        Err(error) => Err(error.into()),
    };
    let flushed = flush(maker.tpm, key).during(cc::FLUSH_CONTEXT);
    let was_there = stored?;
    flushed?;
    Ok(Outcome { root: Provisioned { handle: order.handle, name }, was_there })
}

/// What is at a persistent handle.
enum Occupant {
    Nothing,
    Same,
    Other,
}

/// The answer is not protected: a forged one ends in a refusal by the TPM, or in a Name that a launch does not find.
fn occupant(tpm: &mut impl Transport, handle: u32, public: &[u8]) -> Result<Occupant, KeyError> {
    let mut exchange = Exchange::new();
    Ok(match read_persistent(&mut exchange, tpm, handle).during(cc::READ_PUBLIC)? {
        None => Occupant::Nothing,
        Some(found) if found.public == public => Occupant::Same,
        Some(_) => Occupant::Other,
    })
}

/// TPM2_EvictControl (part 3, 28.5) of the loaded `key`, authorised by the owner through the session.
fn evict_control<T: Transport>(
    maker: &mut Maker<'_, T>,
    key: u32,
    name: Name,
    persistent: u32,
) -> Result<(), ProvisionError> {
    let call = Call {
        code: cc::EVICT_CONTROL,
        entities: &[Entity::Hierarchy(handle::OWNER), Entity::Key(key, name)],
        has_password: false,
        policy: None,
        parameters: &persistent.to_be_bytes(),
        encrypts_command: false,
        encrypts_response: false,
        returns_handle: false,
    };
    let nonce = maker.drbg.draw().map_err(KeyError::from)?;
    let opened = maker.exchange.run_sealed(maker.tpm, &mut maker.session, &call, nonce);
    let done = opened.and_then(|opened| Ok(opened.parameters.finish()?));
    Ok(done.during(cc::EVICT_CONTROL)?)
}
