//! What somebody on the TPM's bus answers instead of the TPM.
//!
//! The emulator takes as many bytes as a response's header names: so every answer here has the size that its header says, and
//! lies are about what is in it. Registers that lie are tested in `hypervisor/tpm`.

/// Bytes of a response's head: tag, size, code.
const HEAD: usize = 10;
/// More than the core has room for.
const TOO_LONG: usize = 3000;

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// What the TPM says.
    Honest,
    /// This response code. The TPM never sees the command.
    Code(u32),
    /// This response code, after the TPM has done what it was told.
    CodeAfter(u32),
    /// Half of the response.
    Half,
    /// The response, and bytes behind it.
    Longer,
    /// Far more than any response.
    TooLong,
    /// The response under a tag that no response has.
    WrongTag,
    /// A good head, and noise behind it.
    WrongBody,
    /// Noise all over.
    Noise,
    /// Sizes within the response that are larger than it.
    WrongSizes,
    /// The response with one bit of the byte changed that has so many behind it.
    Flip(usize),
}

impl Reply {
    /// What comes back of a command that the TPM never sees.
    pub(crate) fn without_tpm(self) -> Option<Vec<u8>> {
        if let Self::Code(code) = self { Some(refusal(code)) } else { None }
    }

    /// What comes back in place of the TPM's `response`.
    pub(crate) fn of(self, mut response: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Honest => return response,
            Self::Code(code) | Self::CodeAfter(code) => return refusal(code),
            Self::Half => response.truncate(HEAD.max(response.len() / 2)),
            Self::Longer => response.extend([0; 5]),
            Self::TooLong => response.resize(TOO_LONG, 0),
            Self::WrongTag => overwrite(&mut response, 0, &[0x00, 0xc4]),
            Self::WrongBody => noise(&mut response, HEAD),
            Self::Noise => noise(&mut response, 0),
            Self::WrongSizes => {
                response.iter_mut().skip(HEAD).step_by(2).for_each(|byte| *byte |= 0xf0);
            }
            Self::Flip(behind) => {
                response.iter_mut().rev().skip(behind).take(1).for_each(|byte| *byte ^= 0x10);
            }
        }
        let size = u32::try_from(response.len()).unwrap_or(u32::MAX);
        overwrite(&mut response, 2, &size.to_be_bytes());
        response
    }
}

fn refusal(code: u32) -> Vec<u8> {
    [&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat()
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(to, from)| *to = *from);
}

/// Noise that is the same in every run (xorshift).
fn noise(bytes: &mut [u8], from: usize) {
    let mut state: u32 = 0x2545_f491;
    for byte in bytes.iter_mut().skip(from) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        [*byte, ..] = state.to_be_bytes();
    }
}

/// How the answers to one command are changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    code: u32,
    reply: Reply,
    skip: u32,
    times: u32,
    done: u32,
}

impl Plan {
    /// Every answer to the command `code` (TPM_CC) is `reply`.
    pub(crate) const fn always(code: u32, reply: Reply) -> Self {
        Self { code, reply, skip: 0, times: u32::MAX, done: 0 }
    }

    /// The same, but so often only.
    pub(crate) const fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    /// The same, but after so many that are honest.
    pub(crate) const fn after(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// How often it was done.
    pub(crate) const fn done(&self) -> u32 {
        self.done
    }

    /// What comes back of this command, if that is planned here.
    pub(crate) const fn next(&mut self, code: u32) -> Option<Reply> {
        if code != self.code || self.done >= self.times {
            return None;
        }
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(1);
            return Some(Reply::Honest);
        }
        self.done = self.done.saturating_add(1);
        Some(self.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [u8; 14] = [0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0, 0, 2, 7, 8];

    #[test]
    fn every_lie_has_the_size_that_its_head_says_and_is_no_truth() {
        let all = [
            Reply::Code(0x101),
            Reply::CodeAfter(0x101),
            Reply::Half,
            Reply::Longer,
            Reply::TooLong,
            Reply::WrongTag,
            Reply::WrongBody,
            Reply::Noise,
            Reply::WrongSizes,
            Reply::Flip(0),
            Reply::Flip(3),
        ];
        for reply in all {
            let told = reply.of(GOOD.to_vec());
            assert_ne!(told, GOOD, "{reply:?}");
            assert_eq!(
                told.get(2..6),
                Some(&u32::try_from(told.len()).unwrap().to_be_bytes()[..]),
                "{reply:?}"
            );
        }
        assert_eq!(Reply::Honest.of(GOOD.to_vec()), GOOD);
        assert_eq!(Reply::Code(0x922).without_tpm(), Some(vec![0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22]));
        assert_eq!(Reply::CodeAfter(0x922).without_tpm(), None);
    }

    #[test]
    fn a_plan_is_for_one_command_and_ends() {
        let mut plan = Plan::always(0x158, Reply::Half).after(1).times(2);
        let told = [0x158, 0x176, 0x158, 0x158, 0x158].map(|code| plan.next(code));
        assert_eq!(told, [Some(Reply::Honest), None, Some(Reply::Half), Some(Reply::Half), None]);
        assert_eq!(plan.done(), 2);
    }
}
