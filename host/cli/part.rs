//! What a storage node is in the ring, on the command line: `nodes update` changes it, `migration plan update` says what that would move.

use clap::ArgGroup;
use witan_wire::v1::UpdateStorageNodeRequest;

use super::args;

/// What is to change of a node.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("part").required(true).multiple(true)))]
pub struct Update {
    /// The node's id
    pub node_id: String,
    /// What fails together with it, such as its rack or data center
    #[arg(long, group = "part", value_parser = args::zone)]
    pub zone: Option<String>,
    /// It is in no zone any longer
    #[arg(long, group = "part", conflicts_with = "zone")]
    pub no_zone: bool,
    /// Its virtual nodes on the ring
    #[arg(long, group = "part", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
    pub virtual_nodes: Option<i32>,
}

impl Update {
    /// As the API has it: what is absent stays as it is, and an empty zone is none.
    pub fn request(self) -> UpdateStorageNodeRequest {
        let Self { node_id, zone, no_zone, virtual_nodes } = self;
        let zone = zone.or_else(|| no_zone.then(String::new));
        UpdateStorageNodeRequest { node_id, virtual_nodes, zone }
    }
}
