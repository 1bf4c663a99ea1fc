//! Starts long-lived tasks under a name, so that one that dies is said and not just gone.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Spawns the future on the current runtime. Its log events carry `task = name`; a panic is logged as an
/// error. The caller keeps the handle and awaits it on shutdown; dropping the handle does not stop the task.
pub fn spawn_named<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let span = tracing::info_span!("task", task = name);
    tokio::spawn(
        async move {
            let inner = tokio::spawn(future.in_current_span());
            let abort = AbortOnDrop(inner.abort_handle());
            match inner.await {
                Ok(()) => tracing::debug!(task = name, "task ended"),
                Err(error) if error.is_panic() => {
                    tracing::error!(task = name, "task panicked; what it did no longer happens");
                }
                Err(_) => {}
            }
            drop(abort);
        }
        .instrument(span),
    )
}

/// Aborting the outer handle ends the task itself.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_task_ends_quietly_for_others() {
        spawn_named("boom", async { panic!("on purpose") })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn aborting_the_handle_ends_the_task() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<()>(1);
        let task = spawn_named("waits", async move {
            let _held = sender;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert_eq!(receiver.recv().await, None);
    }
}
