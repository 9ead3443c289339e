//! How much work a component gives the compiler, counted while it is validated.
//!
//! Small code can mean much work. A function type may have 1,000 parameters and as many results, and an operator of two bytes that uses
//! it (a block, a loop, a branch, a call) takes and gives that many values, each of which the compiler numbers, keeps alive and moves.
//! So what counts is values, not bytes. Counting stops at the first function that has too many, before the validator, whose stack holds
//! them too, has seen more of it.
//!
//! This refuses what is certainly too much and says why in words that an author understands. It is no promise that the rest compiles
//! within its limits: for that there is the child process, see `spawn`.

use wasmparser::{
    FuncToValidate, FuncValidator, FuncValidatorAllocations, FunctionBody, Operator, Parser, ValidPayload, Validator,
    ValidatorResources,
};

use crate::limit::{self, ClassLimits};

/// Why a component is refused: it is invalid, or too much work. The sentence continues its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EffortError {
    #[error("is not a valid component: {0}")]
    Invalid(String),
    #[error(
        "has a function whose operators take and give more than {0} values, block parameters and results of calls \
         included: split it, or pass fewer values"
    )]
    FunctionValues(u64),
    #[error("has functions whose operators take and give more than {0} values in all; pass fewer values")]
    Values(u64),
    #[error(
        "has a function whose values (locals, the operand stack, block parameters) times branches are {0}; at most \
         {limit} are allowed: split it",
        limit = limit::FUNCTION_TANGLE
    )]
    FunctionTangle(u64),
}

impl From<wasmparser::BinaryReaderError> for EffortError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Validates a component, and counts the work that its functions are.
pub(crate) fn check(bytes: &[u8], limits: &ClassLimits) -> Result<(), EffortError> {
    let features = crate::engine::features();
    let mut validator = Validator::new_with_features(features);
    let mut parser = Parser::new(0);
    parser.set_features(features);
    let mut allocations = FuncValidatorAllocations::default();
    let (mut values, most) = (0_u64, limit::VALUES_PER_BYTE * limits.component() as u64);
    let of_each = limits.function_values();
    for payload in parser.parse_all(bytes) {
        if let ValidPayload::Func(function, body) = validator.payload(&payload?)? {
            let (of_function, kept) = check_function(function, &body, allocations, of_each)?;
            allocations = kept;
            values = values.saturating_add(of_function);
            if values > most {
                return Err(EffortError::Values(most));
            }
        }
    }
    Ok(())
}

/// The values that the operators of a function take and give: at most this many.
fn check_function(
    function: FuncToValidate<ValidatorResources>,
    body: &FunctionBody<'_>,
    allocations: FuncValidatorAllocations,
    most: u64,
) -> Result<(u64, FuncValidatorAllocations), EffortError> {
    let mut validator = function.into_validator(allocations);
    let mut reader = body.get_binary_reader();
    validator.read_locals(&mut reader)?;
    let mut operators = wasmparser::OperatorsReader::new(reader);
    let (mut values, mut tangle) = (0_u64, 0_u64);
    while !operators.eof() {
        let (operator, offset) = operators.read_with_offset()?;
        let moved = values_of(&operator, offset, &mut validator);
        values = values.saturating_add(moved);
        if values > most {
            return Err(EffortError::FunctionValues(most));
        }
        let alive = u64::from(validator.len_locals()) + u64::from(validator.operand_stack_height());
        tangle = tangle.saturating_add(ways(&operator).saturating_mul(alive).saturating_add(moved * splits(&operator)));
        if tangle > limit::FUNCTION_TANGLE {
            return Err(EffortError::FunctionTangle(tangle));
        }
        validator.op(offset, &operator)?;
    }
    operators.finish()?;
    Ok((values, validator.into_allocations()))
}

/// The values that an operator takes and gives, on all its ways. An operator that is not valid here has none; validation refuses it next.
fn values_of(operator: &Operator<'_>, offset: usize, validator: &mut FuncValidator<ValidatorResources>) -> u64 {
    let (takes, gives) = operator.operator_arity(&validator.visitor(offset)).unwrap_or_default();
    (u64::from(takes) + u64::from(gives)).saturating_mul(ways(operator).max(1))
}

/// In how many ways control flow goes on here if it splits or joins, otherwise none. Operators of proposals that are not enabled, such as
/// `try_table`, are refused by the validator.
fn ways(operator: &Operator<'_>) -> u64 {
    use Operator::{Block, Br, BrIf, BrTable, Else, End, If, Loop};
    match operator {
        Block { .. } | Loop { .. } | If { .. } | Else | End | Br { .. } | BrIf { .. } => 1,
        BrTable { targets } => u64::from(targets.len()) + 1,
        _ => 0,
    }
}

fn splits(operator: &Operator<'_>) -> u64 {
    ways(operator).min(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limits;

    /// Most values of a function in class standard.
    const VALUES: u64 = limit::VALUES_PER_BYTE * limit::FUNCTION_BYTES as u64;

    /// What is said about a component with this core module.
    fn checked(module: &str) -> Result<(), EffortError> {
        let bytes = wat::parse_str(format!("(component (core module {module}))")).unwrap();
        check(&bytes, &Limits::default().standard)
    }

    /// `count` parameters or results.
    fn many(count: usize) -> String {
        "i32 ".repeat(count)
    }

    /// A function type of as many parameters as results.
    fn through(count: usize) -> String {
        format!("(type $t (func (param {0}) (result {0})))", many(count))
    }

    #[test]
    fn ordinary_code_is_not_too_much_whatever_its_size() {
        // The largest function, of operators that take and give as much as any ordinary one.
        let select = "(local.get 0) (local.get 0) (local.get 0) select drop ".repeat(limit::FUNCTION_BYTES / 8 - 4);
        checked(&format!("(func (param i32) {select})")).unwrap();
        // A switch of 1,000 cases in a function of 100 locals.
        let cases = format!("{}{}", "block ".repeat(1000), "(local.get 0) (br_table");
        let targets: String = (0..1000).map(|n| format!(" {n}")).collect();
        checked(&format!("(func (param i32) (local {}) {cases}{targets}) {})", many(100), "end ".repeat(1000)))
            .unwrap();
    }

    #[test]
    fn parameters_of_blocks_are_values() {
        let (open, end) = ("loop (type $t) ".repeat(2000), "end ".repeat(2000));
        let push = "i32.const 0 ".repeat(200);
        let nested = format!("{} (func {push} {open} {end} {})", through(200), "drop ".repeat(200));
        assert_eq!(checked(&nested), Err(EffortError::FunctionValues(VALUES)));
        let each = "loop (type $t) end ".repeat(2000);
        let in_a_row = format!("{} (func {push} {each} {})", through(200), "drop ".repeat(200));
        assert_eq!(checked(&in_a_row), Err(EffortError::FunctionValues(VALUES)));
    }

    #[test]
    fn values_that_wait_on_the_stack_are_alive_at_every_branch_below() {
        let nested = format!("{} unreachable {}", "i32.const 0 i32.const 0 block ".repeat(4000), "end ".repeat(4000));
        assert!(matches!(checked(&format!("(func {nested})")), Err(EffortError::FunctionTangle(_))));
        let locals = format!("(func (local {}) {})", many(2000), "block end ".repeat(4000));
        assert!(matches!(checked(&locals), Err(EffortError::FunctionTangle(_))));
    }

    #[test]
    fn a_branch_to_many_places_moves_its_values_to_each() {
        let push = "i32.const 0 ".repeat(200);
        let targets = " 0".repeat(6000);
        let table =
            format!("(func block (result {}) {push} (br_table{targets} (i32.const 0)) end unreachable)", many(200));
        assert_eq!(checked(&table), Err(EffortError::FunctionValues(VALUES)));
    }

    #[test]
    fn parameters_and_results_of_calls_are_values_and_the_validator_holds_few_of_them() {
        let results = format!("(func $f (result {}) unreachable)", many(1000));
        let pushes = format!("{results} (func {} unreachable)", "call $f ".repeat(10_000));
        assert_eq!(checked(&pushes), Err(EffortError::FunctionValues(VALUES)));
        let chain = format!("{} (func $f (type $t) unreachable) (func (type $t) ", through(1000));
        let gets: String = (0..1000).map(|n| format!("local.get {n} ")).collect();
        assert_eq!(
            checked(&format!("{chain} {gets} {})", "call $f ".repeat(1000))),
            Err(EffortError::FunctionValues(VALUES))
        );
    }

    #[test]
    fn many_small_functions_are_counted_together() {
        let functions = "(func call $f unreachable)".repeat(5000);
        let module = format!("(func $f (result {}) unreachable) {functions}", many(1000));
        assert_eq!(checked(&module), Err(EffortError::Values(limit::VALUES_PER_BYTE * (1 << 20))));
    }
}
