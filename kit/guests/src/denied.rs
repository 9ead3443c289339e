//! A module in place of the operating system that other people's runtimes expect, `wasi_snapshot_preview1`: it denies everything. What a
//! runtime cannot start without is there, and the same every time: a clock that does not move and random numbers that are always the same,
//! so that equal questions get equal answers.

use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, MemArg,
    MemoryType, Module, TypeSection, ValType,
};

/// What a clock says, in nanoseconds since 1970 or since whenever: one second, since Go takes a clock that says 0 for broken.
const TIME_NS: i64 = 1_000_000_000;
/// Every byte that a source of random numbers gives.
const RANDOM: i32 = 0x5a;
/// No error.
const SUCCESS: i32 = 0;
/// The error number of "there is no such file descriptor", after which runtimes look for no further files.
const BADF: i32 = 8;
/// The error number of "there is no such function".
const NOSYS: i32 = 52;

/// What a function does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Returns an error number, or success.
    Return(i32),
    /// Says that there are none of what is counted: 0 to both places that it is given.
    CountNone,
    /// Writes the time to the last place that it is given.
    TellTime,
    /// Fills the buffer that it is given.
    FillBuffer,
    /// Ends the call as a fault.
    Trap,
}

use Does::{CountNone, FillBuffer, Return, TellTime, Trap};

/// Every function of the interface: its name, its parameters (`i` for 32 bits, `I` for 64) and what it does. All return an error number but
/// `proc_exit`, which does not return.
const FUNCTIONS: [(&str, &str, Does); 46] = [
    ("args_get", "ii", Return(SUCCESS)),
    ("args_sizes_get", "ii", CountNone),
    ("clock_res_get", "ii", Return(NOSYS)),
    ("clock_time_get", "iIi", TellTime),
    ("environ_get", "ii", Return(SUCCESS)),
    ("environ_sizes_get", "ii", CountNone),
    ("fd_advise", "iIIi", Return(BADF)),
    ("fd_allocate", "iII", Return(BADF)),
    ("fd_close", "i", Return(BADF)),
    ("fd_datasync", "i", Return(BADF)),
    ("fd_fdstat_get", "ii", Return(BADF)),
    ("fd_fdstat_set_flags", "ii", Return(BADF)),
    ("fd_fdstat_set_rights", "iII", Return(BADF)),
    ("fd_filestat_get", "ii", Return(BADF)),
    ("fd_filestat_set_size", "iI", Return(BADF)),
    ("fd_filestat_set_times", "iIIi", Return(BADF)),
    ("fd_pread", "iiiIi", Return(BADF)),
    ("fd_prestat_dir_name", "iii", Return(BADF)),
    ("fd_prestat_get", "ii", Return(BADF)),
    ("fd_pwrite", "iiiIi", Return(BADF)),
    ("fd_read", "iiii", Return(BADF)),
    ("fd_readdir", "iiiIi", Return(BADF)),
    ("fd_renumber", "ii", Return(BADF)),
    ("fd_seek", "iIii", Return(BADF)),
    ("fd_sync", "i", Return(BADF)),
    ("fd_tell", "ii", Return(BADF)),
    ("fd_write", "iiii", Return(BADF)),
    ("path_create_directory", "iii", Return(BADF)),
    ("path_filestat_get", "iiiii", Return(BADF)),
    ("path_filestat_set_times", "iiiiIIi", Return(BADF)),
    ("path_link", "iiiiiii", Return(BADF)),
    ("path_open", "iiiiiIIii", Return(BADF)),
    ("path_readlink", "iiiiii", Return(BADF)),
    ("path_remove_directory", "iii", Return(BADF)),
    ("path_rename", "iiiiii", Return(BADF)),
    ("path_symlink", "iiiii", Return(BADF)),
    ("path_unlink_file", "iii", Return(BADF)),
    // Whoever waits would wait for ever: the clock does not move.
    ("poll_oneoff", "iiii", Trap),
    ("proc_exit", "i", Trap),
    ("proc_raise", "i", Trap),
    ("random_get", "ii", FillBuffer),
    ("sched_yield", "", Return(SUCCESS)),
    ("sock_accept", "iii", Return(BADF)),
    ("sock_recv", "iiiiii", Return(BADF)),
    ("sock_send", "iiiii", Return(BADF)),
    ("sock_shutdown", "ii", Return(BADF)),
];

/// The module, in the shape that `wit-component` takes an adapter in: it shares the memory of the module that calls it.
pub(super) fn module() -> Vec<u8> {
    let (mut types, mut functions) = (TypeSection::new(), FunctionSection::new());
    let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
    let mut imports = ImportSection::new();
    let memory = MemoryType { minimum: 0, maximum: None, memory64: false, shared: false, page_size_log2: None };
    imports.import("env", "memory", EntityType::Memory(memory));
    for (index, (name, parameters, does)) in (0..).zip(FUNCTIONS) {
        let wide = |parameter| if parameter == 'I' { ValType::I64 } else { ValType::I32 };
        let results: &[ValType] = if name == "proc_exit" { &[] } else { &[ValType::I32] };
        types.ty().function(parameters.chars().map(wide).collect::<Vec<_>>(), results.iter().copied());
        functions.function(index);
        exports.export(name, ExportKind::Func, index);
        code.function(&body(does));
    }
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module.finish()
}

fn body(does: Does) -> Function {
    let mut body = Function::new([]);
    let mut code = body.instructions();
    let at = |align| MemArg { offset: 0, align, memory_index: 0 };
    match does {
        Return(number) => {
            code.i32_const(number);
        }
        CountNone => {
            for place in [0, 1] {
                code.local_get(place).i32_const(0).i32_store(at(2));
            }
            code.i32_const(SUCCESS);
        }
        TellTime => {
            code.local_get(2).i64_const(TIME_NS).i64_store(at(3)).i32_const(SUCCESS);
        }
        FillBuffer => {
            code.block(BlockType::Empty).loop_(BlockType::Empty);
            code.local_get(1).i32_eqz().br_if(1);
            code.local_get(0).i32_const(RANDOM).i32_store8(at(0));
            code.local_get(0).i32_const(1).i32_add().local_set(0);
            code.local_get(1).i32_const(1).i32_sub().local_set(1);
            code.br(0).end().end().i32_const(SUCCESS);
        }
        Trap => {
            code.unreachable();
        }
    }
    code.end();
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_valid_module_with_every_function_once() {
        wasmparser::validate(&module()).unwrap();
        assert!(FUNCTIONS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
