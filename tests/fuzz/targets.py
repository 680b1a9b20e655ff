"""All targets, by their names."""

from __future__ import annotations

from tests.fuzz import codecs, doors, links, members, messages, rows
from tests.fuzz.target import Target

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        doors.WebSocketTarget,
        doors.HttpTarget,
        doors.ProxyTarget,
        messages.SwitchboardTarget,
        links.LinkTarget,
        links.WorkerSyncTarget,
        members.MemberTarget,
        rows.RowTarget,
        codecs.MessageTarget,
        codecs.FrameTarget,
        codecs.TicketTarget,
        codecs.SettingsTarget,
        codecs.WorkersFileTarget,
        codecs.DescriptionTarget,
        codecs.ProbeTarget,
        codecs.AnswerTarget,
        codecs.HeadTarget,
    )
}
