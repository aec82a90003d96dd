//! The basis of the other tests.

use jiff::Timestamp;
use tests::{GROUP, Stack};

#[tokio::test]
async fn the_world_begins_with_one_quiet_instance() {
    let stack = Stack::start().await;
    let aws = stack.aws();
    assert_eq!(aws.ecs.instances().count(), 1);
    assert_eq!(aws.ecs.group(GROUP).unwrap().desired, 1);
    assert!(aws.next_due().is_none_or(|due| due <= Timestamp::now()));
}
