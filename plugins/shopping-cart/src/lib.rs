//! Conflict resolver: the shopping cart of the Dynamo paper. An item that was added on either side is kept.
//!
//! A cart is a JSON object with the single field `items`, which maps an item's name to its quantity:
//!
//! ```json
//! {"items": {"milk": 2, "bread": {"phone": 1, "laptop": 3}}}
//! ```
//!
//! A quantity is a whole number, or a map from a writer's name to that writer's number; the item's quantity is then the sum. Siblings
//! are merged to one cart with every item of any of them; of two numbers by the same writer the greater one is kept. So the numbers of
//! two devices add up if each writes its own, and plain numbers from two devices do not count the same milk twice. A plain number
//! belongs to the writer "".
//!
//! Taking the greater of two numbers is commutative, associative and idempotent, as verdicts must be. Adding up two carts would not be
//! idempotent, and coordinators resolve the same conflict more than once. As in the paper, an item that one side removed reappears if
//! the other side still had it.
//!
//! If a sibling is not such a cart, all siblings are kept.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value, json};
use witan_plugin_sdk::resolver::{Question, Verdict};
use witan_plugin_sdk::{ConflictResolver, Error, Plugin};

/// The resolver. It takes no configuration.
#[derive(Debug, Default)]
pub struct ShoppingCart;

impl Plugin for ShoppingCart {}

/// Quantities by item and writer.
type Items = BTreeMap<String, BTreeMap<String, u64>>;

impl ConflictResolver for ShoppingCart {
    fn resolve(&self, question: &Question) -> Result<Verdict, Error> {
        let mut items = Items::new();
        for sibling in &question.siblings {
            let Some(cart) = read(&sibling.value) else { return Ok(Verdict::KeepAll) };
            join(&mut items, cart);
        }
        Ok(Verdict::Merged(write(items)))
    }

    fn samples() -> Vec<Vec<u8>> {
        [
            r#"{"items":{"milk":2}}"#,
            r#"{"items":{"milk":1,"bread":1}}"#,
            r#"{"items":{"milk":{"phone":1,"laptop":3}}}"#,
            r#"{"items":{"milk":{"phone":2},"eggs":12}}"#,
            r#"{"items":{}}"#,
            r#"{"items":{"milk":-1}}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }
}

fn join(items: &mut Items, cart: Items) {
    for (item, writers) in cart {
        let known = items.entry(item).or_default();
        for (writer, quantity) in writers {
            match known.entry(writer) {
                Entry::Vacant(entry) => _ = entry.insert(quantity),
                Entry::Occupied(mut entry) => *entry.get_mut() = quantity.max(*entry.get()),
            }
        }
    }
}

fn read(value: &[u8]) -> Option<Items> {
    let Ok(Value::Object(mut cart)) = serde_json::from_slice(value) else { return None };
    let Some(Value::Object(items)) = cart.remove("items") else { return None };
    if !cart.is_empty() {
        return None;
    }
    items.into_iter().map(|(item, quantity)| Some((item, quantities(quantity)?))).collect()
}

fn quantities(quantity: Value) -> Option<BTreeMap<String, u64>> {
    match quantity {
        Value::Number(number) => Some(BTreeMap::from([(String::new(), number.as_u64()?)])),
        Value::Object(writers) => {
            writers.into_iter().map(|(writer, number)| Some((writer, number.as_u64()?))).collect()
        }
        _ => None,
    }
}

/// The cart in canonical form.
fn write(items: Items) -> Vec<u8> {
    let items: Map<String, Value> = items
        .into_iter()
        .map(|(item, writers)| match writers.get("") {
            Some(number) if writers.len() == 1 => (item, json!(number)),
            _ => (item, json!(writers)),
        })
        .collect();
    json!({ "items": items }).to_string().into_bytes()
}

witan_plugin_sdk::conflict_resolver!(ShoppingCart);

#[cfg(test)]
mod tests {
    use super::*;
    use witan_plugin_sdk::resolver::{Sibling, assert_laws};

    fn merged(values: &[&str]) -> Option<String> {
        let siblings = values.iter().map(|v| Sibling { value: v.as_bytes().to_vec(), time: 1 }).collect();
        let question = Question { key: b"k".to_vec(), siblings, attributes: Vec::new() };
        match ShoppingCart.resolve(&question).unwrap() {
            Verdict::Merged(bytes) => Some(String::from_utf8(bytes).unwrap()),
            Verdict::KeepAll => None,
            Verdict::Pick(_) => panic!("never picks"),
        }
    }

    #[test]
    fn items_added_on_either_side_are_kept() {
        let cart = merged(&[r#"{"items":{"milk":2}}"#, r#"{"items":{"milk":1,"bread":1}}"#]).unwrap();
        assert_eq!(cart, r#"{"items":{"bread":1,"milk":2}}"#);
    }

    #[test]
    fn quantities_of_named_writers_add_up() {
        let cart = merged(&[r#"{"items":{"milk":{"a":1}}}"#, r#"{"items":{"milk":{"b":2,"a":1}}}"#]).unwrap();
        assert_eq!(cart, r#"{"items":{"milk":{"a":1,"b":2}}}"#);
        let cart = merged(&[r#"{"items":{"milk":5}}"#, r#"{"items":{"milk":{"b":2}}}"#]).unwrap();
        assert_eq!(cart, r#"{"items":{"milk":{"":5,"b":2}}}"#);
    }

    #[test]
    fn a_value_that_is_not_a_cart_keeps_all() {
        let others = [
            "",
            "{}",
            "[]",
            r#"{"items":[]}"#,
            r#"{"items":{"milk":1.5}}"#,
            r#"{"items":{},"coupon":1}"#,
            r#"{"items":{"a":null}}"#,
        ];
        for other in others {
            assert_eq!(merged(&[r#"{"items":{}}"#, other]), None, "{other:?}");
        }
    }

    #[test]
    fn verdicts_obey_the_laws() {
        let mut values = ShoppingCart::samples();
        values.extend(
            [r#"{"items":{"milk":{"":7,"phone":0}}}"#, r#"{"items":{"milk":{},"x":18446744073709551615}}"#]
                .map(Vec::from),
        );
        assert_laws(&ShoppingCart, &values);
    }
}
