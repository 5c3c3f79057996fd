//! The calls of the `manage` group: seeing all guests, and asking for their start, stop and reset.

use dolmen_abi::{GuestInfo, GuestName, ListGuestsReply, MAX_GUESTS, Status};

use super::handler::{put, put_bytes, take};
use super::platform::GuestTable;
use super::{Answer, Service};
use crate::lifecycle::Request;
use zerocopy::IntoBytes;

impl Service<'_> {
    pub(super) fn list_guests(&mut self, table: &impl GuestTable) -> Result<Answer, Status> {
        let mut length = size_of::<ListGuestsReply>();
        let mut count = 0u32;
        for guest in (0..MAX_GUESTS).map_while(|index| table.describe(index)) {
            put_bytes(self.scratch, length, guest.as_bytes())?;
            length = length.saturating_add(size_of::<GuestInfo>());
            count = count.saturating_add(1);
        }
        let caller = u32::try_from(self.slot.index()).map_err(|_| Status::BAD_ARGUMENT)?;
        put(self.scratch, &ListGuestsReply { count, caller, uptime_ns: table.uptime_ns() })?;
        Ok(Answer::reply(length))
    }

    pub(super) fn ask(&mut self, request: Request, table: &mut impl GuestTable) -> Result<Answer, Status> {
        let (GuestName { name }, _) = take(self.scratch)?;
        table.request(&name, request)?;
        Ok(Answer::reply(0))
    }
}
