//! A component that its author tries: validated, compiled, described, probed and asked as a coordinator would, by the same engine and under
//! the same limits, but without a coordinator's store, tenants, queues, breakers and shares of the CPU.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{
    Hook, PolicyAnswer, PolicyQuestion, ReadReplica, ReplicaState, ResolverQuestion, Verdict, coarse,
};
use witan_kernel::name::NodeId;

use crate::calls::Manifest;
use crate::describe::describe;
use crate::digest::Digest;
use crate::engine::{self, Ticks};
use crate::error::{HostError, PluginError};
use crate::fault::Fault;
use crate::guest::Serves;
use crate::instance::{Instance, Program};
use crate::limit::Limits;
use crate::metrics::Counters;
use crate::tenant::Plan;
use crate::validate::{self, Inspection};

/// Looks at a component without judging it. Fails if the bytes are no binary component.
pub fn inspect(component: &[u8]) -> Result<Inspection, PluginError> {
    validate::inspect(component).map_err(PluginError::refused)
}

/// Checks a component before it is compiled, as a coordinator with these limits does, and finds the hook that it implements.
pub fn validate(component: &[u8], limits: &Limits) -> Result<Hook, PluginError> {
    validate::validate(component, limits).map(|valid| valid.hook).map_err(PluginError::refused)
}

/// Why a question has no answer. The sentence continues the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The plugin does not answer this question, and says so.
    #[error("{0}")]
    Declined(String),
    /// The plugin broke a rule or a limit: it trapped, took too long, or answered what is not allowed.
    #[error("{0}")]
    Broken(String),
}

impl From<Fault> for Unanswered {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Declined(declined) => Self::Declined(declined.to_string()),
            Fault::Broken(broken) => Self::Broken(broken.to_string()),
        }
    }
}

/// A component that has been compiled and has described itself.
pub struct Trial {
    hook: Hook,
    digest: Digest,
    manifest: Manifest,
    program: Arc<Program>,
    image: usize,
    compiled: Duration,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("hook", &self.hook).field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Trial {
    /// Validates a component under `limits`, compiles it in a process of its own that runs `compiler` (see
    /// [`crate::compile_if_asked`]), and has it describe itself. Blocks for as long as that takes.
    pub fn prepare(component: &[u8], limits: &Limits, compiler: &Path) -> Result<Self, PluginError> {
        let valid = validate::validate(component, limits).map_err(PluginError::refused)?;
        let (hook, of_class, wall) = (valid.hook, limits.of(valid.needs.class), limits.compile_wall);
        let began = Instant::now();
        let image = crate::spawn::compile(compiler, component, of_class, wall).map_err(PluginError::uncompiled)?;
        let compiled = began.elapsed();
        let engine = engine::runtime().map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let ticks: Ticks = engine::start_ticking(&engine).map_err(HostError::thread("the ticker"))?;
        let loaded = crate::compile::load(&engine, &image).map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let program = Program::link(&engine, &loaded, hook, ticks, valid.budget).map_err(PluginError::refused)?;
        let manifest = describe(&program, hook).map_err(PluginError::refused)?;
        let (digest, image) = (Digest::of(component), image.len());
        Ok(Self { hook, digest, manifest, program: Arc::new(program), image, compiled })
    }

    /// The hook that it implements.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The name that it gives itself.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The version that it gives itself.
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// Whether it says that equal questions always get equal answers.
    pub fn is_deterministic(&self) -> bool {
        self.manifest.deterministic
    }

    /// Its identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Size of its machine code, in bytes.
    pub fn image_bytes(&self) -> usize {
        self.image
    }

    /// How long compiling it took.
    pub fn compile_time(&self) -> Duration {
        self.compiled
    }

    /// Probes it as a coordinator does before it binds it; for a resolver, the laws are tried on `values` too. Of these, the same are used
    /// as of a resolver's own samples: at most 64 KiB each.
    pub fn probe(&self, configuration: &[u8], values: &[Bytes]) -> Result<(), PluginError> {
        let plan = self.plan(configuration);
        crate::probe::probe(&plan, self.hook, self.manifest.deterministic, values)
            .map_err(|error| PluginError::unprobed(format!("{}@{}", self.name(), self.version()), error))
    }

    /// Something that can be asked, with this configuration of a binding. Starts an instance, so that a configuration which the plugin
    /// refuses is [`Unanswered::Declined`] here.
    pub fn configured(&self, configuration: &[u8]) -> Result<Configured, Unanswered> {
        let (plan, counters) = (self.plan(configuration), Arc::new(Counters::default()));
        let mut instance =
            Box::new(plan.program.start(Serves { by: plan.by.clone(), tenant: None, counters: counters.clone() })?);
        instance.configure(configuration)?;
        Ok(Configured { plan, counters, instance: Some(instance) })
    }

    fn plan(&self, configuration: &[u8]) -> Plan {
        Plan {
            digest: self.digest,
            program: self.program.clone(),
            configuration: Bytes::copy_from_slice(configuration),
            by: self.name().into(),
            deterministic: self.manifest.deterministic,
        }
    }
}

/// A component with a configuration, and one warm instance, which is replaced when a coordinator would replace it.
pub struct Configured {
    plan: Plan,
    counters: Arc<Counters>,
    instance: Option<Box<Instance>>,
}

impl std::fmt::Debug for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configured").field("by", &self.plan.by).finish_non_exhaustive()
    }
}

impl Configured {
    /// Asks a consistency policy. Its answer has been limited to what the question allows.
    pub fn decide(&mut self, question: &PolicyQuestion<'_>) -> Result<PolicyAnswer, Unanswered> {
        self.ask(|instance| instance.decide(question))
    }

    /// Asks a conflict resolver.
    pub fn resolve(&mut self, question: &ResolverQuestion) -> Result<Verdict, Unanswered> {
        self.ask(|instance| instance.resolve(question))
    }

    /// Asks a routing hook for a partition key.
    pub fn partition_key(&mut self, key: &[u8]) -> Result<Bytes, Unanswered> {
        self.ask(|instance| instance.partition_key(key))
    }

    /// Asks a routing hook for the order in which replicas are read: indices into `replicas`, best first.
    pub fn prefer(&mut self, key: &[u8], replicas: &[(NodeId, ReplicaState)]) -> Result<Vec<u8>, Unanswered> {
        let known = |(node, state): &(NodeId, ReplicaState)| ReadReplica {
            node: node.clone(),
            state: *state,
            load: coarse(state.in_flight),
            zone: None,
        };
        let replicas: Vec<ReadReplica> = replicas.iter().map(known).collect();
        self.ask(|instance| instance.prefer(key, &replicas, None))
    }

    /// Starts another instance in place of the warm one, as the first question of a tenant does.
    pub fn restart(&mut self) -> Result<(), Unanswered> {
        self.instance = None;
        self.instance = Some(self.plan.start(None, &self.counters)?);
        Ok(())
    }

    /// Bytes of the warm instance's memories; 0 if there is none.
    pub fn memory_bytes(&self) -> usize {
        self.instance.as_ref().map_or(0, |instance| instance.bytes())
    }

    /// Instances that were started so far.
    pub fn instances(&self) -> u64 {
        self.counters.read().instances
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Instance) -> Result<T, Fault>) -> Result<T, Unanswered> {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.plan.start(None, &self.counters)?,
        };
        let answer = question(&mut instance);
        // After a trap an instance cannot be entered again.
        if !matches!(answer, Err(Fault::Broken(_))) && instance.is_reusable(self.plan.program.budget()) {
            self.instance = Some(instance);
        }
        Ok(answer?)
    }
}
