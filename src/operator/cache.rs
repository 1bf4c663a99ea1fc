//! What a watch has shown, as it is now.
//!
//! One cache per kind, fed by one watch per namespace or by one for all. While a watch lists anew, what was
//! known before stays in use, and is replaced when the list is complete.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_model::ObjectName;

/// Which watch feeds a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feed(usize);

/// Objects by name. Objects without namespace have an empty one.
#[derive(Debug)]
pub(super) struct Cache<T> {
    feeds: Mutex<Vec<Slot<T>>>,
    optional: bool,
}

#[derive(Debug)]
struct Slot<T> {
    objects: BTreeMap<ObjectName, Arc<T>>,
    /// A list that is being read.
    coming: Option<BTreeMap<ObjectName, Arc<T>>>,
    /// Whether a list was complete once.
    complete: bool,
}

impl<T: PartialEq> Cache<T> {
    /// A cache that this many watches will feed.
    pub(super) fn new(feeds: usize) -> Self {
        let slot = || Slot {
            objects: BTreeMap::new(),
            coming: None,
            complete: false,
        };
        Self {
            feeds: Mutex::new((0..feeds).map(|_| slot()).collect()),
            optional: false,
        }
    }

    /// The same, of what nobody has to wait for who may not read it.
    pub(super) fn optional(feeds: usize) -> Self {
        Self {
            optional: true,
            ..Self::new(feeds)
        }
    }

    /// The feeds, each for one watch.
    pub(super) fn feeds(&self) -> Vec<Feed> {
        (0..self.lock().len()).map(Feed).collect()
    }

    /// Whether every watch has listed everything once.
    pub(super) fn is_complete(&self) -> bool {
        self.lock().iter().all(|slot| slot.complete)
    }

    /// The object of that name.
    pub(super) fn get(&self, name: &ObjectName) -> Option<Arc<T>> {
        let feeds = self.lock();
        feeds
            .iter()
            .find_map(|slot| slot.objects.get(name).cloned())
    }

    /// Everything, in the order of names within each feed.
    pub(super) fn all(&self) -> Vec<(ObjectName, Arc<T>)> {
        let feeds = self.lock();
        let all = feeds.iter().flat_map(|slot| &slot.objects);
        all.map(|(name, object)| (name.clone(), Arc::clone(object)))
            .collect()
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.lock().iter().map(|slot| slot.objects.len()).sum()
    }

    /// A list begins.
    pub(super) fn begin(&self, feed: Feed) {
        self.slot(feed, |slot| slot.coming = Some(BTreeMap::new()));
    }

    /// An object of the list that is being read.
    pub(super) fn listed(&self, feed: Feed, name: ObjectName, object: T) {
        self.slot(feed, |slot| {
            // What did not change keeps its identity, so that nothing is parsed again.
            let object = match slot.objects.get(&name) {
                Some(known) if **known == object => Arc::clone(known),
                _ => Arc::new(object),
            };
            slot.coming.get_or_insert_default().insert(name, object);
        });
    }

    /// The list is complete. Returns whether it differs from what was known.
    pub(super) fn end(&self, feed: Feed) -> bool {
        self.slot(feed, |slot| {
            let coming = slot.coming.take().unwrap_or_default();
            let changed = !slot.complete || coming != slot.objects;
            slot.objects = coming;
            slot.complete = true;
            changed
        })
    }

    /// The list may not be read. Returns whether it was waited for until now.
    pub(super) fn refused(&self, feed: Feed) -> bool {
        let optional = self.optional;
        self.slot(feed, |slot| {
            optional && !std::mem::replace(&mut slot.complete, true)
        })
    }

    /// An object was made or changed. Returns whether it differs from what was known.
    pub(super) fn apply(&self, feed: Feed, name: ObjectName, object: T) -> bool {
        self.slot(feed, |slot| match slot.objects.get(&name) {
            Some(known) if **known == object => false,
            _ => {
                slot.objects.insert(name, Arc::new(object));
                true
            }
        })
    }

    /// An object was deleted. Returns whether it was known.
    pub(super) fn delete(&self, feed: Feed, name: &ObjectName) -> bool {
        self.slot(feed, |slot| slot.objects.remove(name).is_some())
    }

    /// Takes what was known in an earlier life, until a list is complete.
    pub(super) fn restore(&self, objects: impl Iterator<Item = (ObjectName, T)>) {
        let mut feeds = self.lock();
        if let Some(slot) = feeds.first_mut().filter(|slot| !slot.complete) {
            let objects = objects.map(|(name, object)| (name, Arc::new(object)));
            slot.objects.extend(objects);
        }
    }

    fn slot<R>(&self, feed: Feed, work: impl FnOnce(&mut Slot<T>) -> R) -> R
    where
        R: Default,
    {
        let mut feeds = self.lock();
        feeds.get_mut(feed.0).map(work).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot<T>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    #[test]
    fn a_new_list_replaces_what_was_known_only_when_it_is_complete() {
        let cache = Cache::new(1);
        let feed = cache.feeds()[0];
        cache.begin(feed);
        cache.listed(feed, name("a"), 1);
        cache.listed(feed, name("b"), 2);
        assert!(!cache.is_complete());
        assert!(cache.end(feed));
        let before = cache.get(&name("a")).unwrap();

        cache.begin(feed);
        cache.listed(feed, name("a"), 1);
        assert_eq!(cache.len(), 2, "the old list is in use");
        assert!(cache.end(feed), "b is gone");
        assert_eq!(cache.len(), 1);
        assert!(Arc::ptr_eq(&before, &cache.get(&name("a")).unwrap()));

        cache.begin(feed);
        cache.listed(feed, name("a"), 1);
        assert!(!cache.end(feed), "nothing changed");
    }

    #[test]
    fn what_is_restored_lasts_until_a_list_is_complete() {
        let cache = Cache::new(1);
        let feed = cache.feeds()[0];
        cache.restore([(name("old"), 1)].into_iter());
        assert!(!cache.is_complete());
        cache.begin(feed);
        cache.listed(feed, name("new"), 2);
        assert_eq!(cache.all()[0].0, name("old"));
        cache.end(feed);
        assert_eq!(cache.all()[0].0, name("new"));
        cache.restore([(name("old"), 1)].into_iter());
        assert_eq!(cache.len(), 1, "too late");
    }

    #[test]
    fn only_differences_count_as_changes() {
        let cache = Cache::new(2);
        let feeds = cache.feeds();
        assert!(cache.apply(feeds[0], name("a"), 1));
        assert!(!cache.apply(feeds[0], name("a"), 1));
        assert!(cache.apply(feeds[1], name("b"), 1));
        assert!(cache.delete(feeds[1], &name("b")));
        assert!(!cache.delete(feeds[1], &name("b")));
        cache.end(feeds[0]);
        assert!(!cache.is_complete(), "the other watch has not listed yet");
    }
}
