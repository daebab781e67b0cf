//! Asks the engine for an attempt's container.

use std::sync::PoisonError;

use super::super::Fault;
use super::super::cgroup::AttemptGroup;
use super::super::docker::{EngineError, EngineInfo, RunSpec};
use super::super::output::OutputFiles;
use super::super::workspace::{self, Workspace};
use super::judge::failed;
use super::{Attempt, Next, Writer};
use crate::sys::kill_point;

impl Attempt<'_> {
    /// Asks the engine for this attempt's container.
    pub(super) fn launch(&self) -> Next {
        loop {
            match self.try_launch() {
                Ok(next) => return next,
                // Processes, descriptors or memory are short, or the CLI is being replaced: no fault of the job's.
                Err(words) if self.try_again_later(&words) => {}
                Err(_) => return Next::LetGo,
            }
            if self.is_stop_asked() {
                return self.look(None, &mut 0);
            }
        }
    }

    /// The error says why it cannot be tried now.
    fn try_launch(&self) -> Result<Next, String> {
        let given_up = || self.is_stop_asked();
        let prepared = self.runner.until_there_is_space(&self.job.job_id, &given_up, || {
            let workspace = workspace::bind(self.runner, &self.job, &self.container)?;
            kill_point::reached("mounts-bound");
            let files = OutputFiles::create(&self.paths)
                .map_err(|error| Fault::io("not_started", "the output files cannot be made", &error))?;
            Ok((workspace, files))
        });
        let (workspace, files) = match prepared {
            Some(Ok(prepared)) => prepared,
            Some(Err(fault)) => return Ok(failed(fault.reason, fault.message)),
            // Nothing was started, and nothing is wanted any more.
            None if !self.runner.is_stopping() => return Ok(self.look(None, &mut 0)),
            None => return Ok(Next::LetGo),
        };
        kill_point::reached("output-files-made");
        let spec = self.spec(workspace);
        match self.docker().spawn_run(&spec, files.stdout, files.stderr) {
            Ok(child) => {
                kill_point::reached("cli-spawned");
                Ok(Next::Wait(Writer::Ours(child)))
            }
            Err(EngineError::Unavailable(words)) => Err(format!("docker cannot be run: {words}")),
            Err(error) => Ok(failed("not_started", format!("docker cannot be run: {error}"))),
        }
    }

    fn spec(&self, workspace: Workspace) -> RunSpec {
        let (setup, manifest) = (&self.runner.setup, &self.manifest);
        let execution = self.job.execution_hash.map(|hash| hash.to_string()).unwrap_or_default();
        let labels = [
            ("hackbrain.log", setup.log_id.clone()),
            ("hackbrain.job", self.job.job_id.to_string()),
            ("hackbrain.attempt", self.job.attempt.to_string()),
            ("hackbrain.execution", execution),
        ];
        let info = self.runner.info.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let engine = info.as_ref().map(EngineInfo::capacity);
        let grant = setup.resources.grant(&manifest.resources, engine.as_ref());
        RunSpec {
            container: self.container.clone(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            image_id: self.job.image_id.as_deref().unwrap_or_default().to_owned(),
            command: manifest.command.clone(),
            binds: workspace.binds,
            workdir: workspace.workdir,
            user: workspace.user,
            env: manifest.env.clone(),
            cpus: grant.cpus,
            memory_mib: grant.memory_mib,
            swap_limit: info.is_some_and(|info| info.swap_limit),
            pids: grant.pids,
            gpus: grant.gpus,
            network: manifest.network,
            cgroup_parent: self.metered.meter().group().and_then(AttemptGroup::parent_argument),
            cidfile: Some(self.paths.cidfile.clone()),
        }
    }
}
