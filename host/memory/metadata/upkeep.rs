//! Claims of upkeep.

use witan_kernel::port::upkeep::{lost_duty, named_duty, too_many_duties};
use witan_kernel::port::{Answer, Claimant, DUTIES, Duties, Duty, DutyOnRecord, PassEnd, StoreError, UpkeepClaims};

use super::{MemoryMetadata, State};

impl State {
    /// The record of a duty, or a new one if there is room for it.
    fn duty(&self, duty: &Duty) -> Result<DutyOnRecord, StoreError> {
        named_duty(duty)?;
        match self.duties.get(duty) {
            Some(known) => Ok(known.clone()),
            None if self.duties.keys().filter(|known| known.kind.counts_with(duty.kind)).count() >= DUTIES => {
                Err(too_many_duties())
            }
            None => Ok(DutyOnRecord::new(duty.clone())),
        }
    }

    fn put_duty(&mut self, on_record: DutyOnRecord) {
        self.duties.insert(on_record.duty.clone(), on_record);
    }
}

impl UpkeepClaims for MemoryMetadata {
    fn duties(&self) -> Answer<Duties> {
        let clock = self.clock.clone();
        self.answer(move |state| {
            Ok(Duties { now_ms: clock.wall_ms(), duties: state.duties.values().cloned().collect() })
        })
    }

    fn claim_duty(&self, duty: &Duty, by: Claimant, for_ms: u64) -> Answer<DutyOnRecord> {
        let (duty, clock) = (duty.clone(), self.clock.clone());
        self.answer(move |state| {
            let claimed = state.duty(&duty)?.claimed(by, for_ms, clock.wall_ms())?;
            state.put_duty(claimed.clone());
            Ok(claimed)
        })
    }

    fn keep_duty(&self, duty: &Duty, fence: u64, cursor: Vec<u8>, for_ms: u64) -> Answer<()> {
        let (duty, clock) = (duty.clone(), self.clock.clone());
        self.answer(move |state| {
            let known = state.duties.get(&duty).cloned().ok_or_else(|| lost_duty(&duty))?;
            state.put_duty(known.kept(fence, cursor, for_ms, clock.wall_ms())?);
            Ok(())
        })
    }

    fn give_back_duty(&self, duty: &Duty, fence: u64, end: PassEnd) -> Answer<()> {
        let (duty, clock) = (duty.clone(), self.clock.clone());
        self.answer(move |state| {
            let known = state.duties.get(&duty).cloned().ok_or_else(|| lost_duty(&duty))?;
            state.put_duty(known.given_back(fence, end, clock.wall_ms())?);
            Ok(())
        })
    }

    fn want_duty(&self, duty: &Duty) -> Answer<()> {
        let (duty, clock) = (duty.clone(), self.clock.clone());
        self.answer(move |state| {
            let known = state.duty(&duty)?;
            state.put_duty(DutyOnRecord { wanted_ms: clock.wall_ms(), ..known });
            Ok(())
        })
    }

    fn forget_duty(&self, duty: &Duty) -> Answer<()> {
        let duty = duty.clone();
        self.answer(move |state| {
            state.duties.remove(&duty);
            Ok(())
        })
    }
}
