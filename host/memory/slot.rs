//! The order of slots.

use witan_kernel::port::Slot;

/// Orders slots as the SQL stores do: by tenant, then by the hook's name.
pub(crate) type SlotKey = (String, &'static str);

pub(crate) fn slot_key(slot: &Slot) -> SlotKey {
    (slot.tenant_text().to_owned(), slot.hook.as_str())
}
