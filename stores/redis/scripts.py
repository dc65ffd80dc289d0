"""The scripts of a RedisStore. Each is one step for the server, and changes one session, but for ``SWEEP``.

What gives a label or creates a session looks whether a few others are still there, so that the indexes forget those
which the server took away by itself.

Numbers in Lua are doubles: times before ``EXACT`` are exact, later deadlines only ever compared with such a time, and
what is not exact is answered ``SLOW``, for Python to do. Texts are compared for equality alone, since their order is
the locale's. On a single server the scripts keep the indexes too, in the same step; on a cluster the store does what it
can of that (``apart``).
"""

from typing import Final

from .lua import DUE, EXPIRY, INDEX, Script

__all__ = [
    "ANYWAY",
    "APPLY",
    "CREATE",
    "FORGET",
    "GONE",
    "NUMBER",
    "PEND",
    "REAP",
    "REMOVE",
    "REVOKE",
    "SWAP",
    "SWEEP",
]

GONE: Final = 0
"""There is no live session of this proof."""

SLOW: Final = -1
"""Nothing was done: load the record, and see in Python what is to be done."""

ELSEWHERE: Final = -2
"""The record has not the label that it must have."""


_FIRST: Final = "local index = ARGV[1]"
_ANSWERS: Final = f"local GONE, SLOW, ELSEWHERE = {GONE}, {SLOW}, {ELSEWHERE}"

CREATE: Final = Script(
    _FIRST,
    EXPIRY,
    INDEX,
    DUE,
    """
local now, head, labels = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local old = redis.call('HMGET', KEYS[1], 'h', 'l')
if old[1] and #old[1] >= 113 then
  if string.byte(old[1]) > 1 then return false end
  if now < ends_of(old[1]) then return false end
end
local before = old[2] or ''
-- A server without memory refuses the first that is written, and only that: so nothing comes before it without need.
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'h', head)
for first = 5, #ARGV, 1000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if labels ~= '' then redis.call('HSET', KEYS[1], 'l', labels) end
local handle, ends = handle_of(KEYS[1]), ends_of(head)
expire(KEYS[1], ends - now)
reindex(handle, before, '', 0)
reindex(handle, '', labels, ends - now)
plan(handle, ends, now)
if index ~= '' then overdue(now - 120000, 2) end
return before
""",
)
"""index, now, head, labels, names and values -> the labels of an expired record in its place; nil for a live one."""

REMOVE: Final = Script(
    _FIRST,
    INDEX,
    DUE,
    """
if redis.call('HGET', KEYS[1], 'h') ~= ARGV[2] then return false end
local labels = redis.call('HGET', KEYS[1], 'l') or ''
erase(KEYS[1], labels)
return labels
""",
)
"""index, head -> the labels of the record, which is gone; nil if its head is another."""

REAP: Final = Script(
    _FIRST,
    INDEX,
    DUE,
    """
local head, limit = redis.call('HGET', KEYS[1], 'h'), tonumber(ARGV[3])
if not head or #head < 113 or string.byte(head) ~= 1 then return false end
local time = ARGV[2] == 'ends' and ends_of(head) or struct.unpack('>i8', head, 18)
if time >= limit then return false end
local labels = redis.call('HGET', KEYS[1], 'l') or ''
erase(KEYS[1], labels)
return labels
""",
)
"""index, ``ends`` or ``seen``, a time -> the labels of the record, which is gone; nil if that comes later."""

ANYWAY: Final = b"w"
"""What a revocation is told that must write something for replicas to confirm."""

REVOKE: Final = Script(
    _FIRST,
    INDEX,
    DUE,
    """
local old = redis.call('HMGET', KEYS[1], 'h', 'l')
local labels = old[2] or ''
if not old[1] or (ARGV[2] ~= '' and not has(labels, ARGV[2])) then
  if old[1] or not ARGV[3] then return false end
  redis.call('HSET', KEYS[1], 'w', '')
  redis.call('DEL', KEYS[1])
  return {'', ''}
end
erase(KEYS[1], labels)
return {old[1], labels}
""",
)
"""index, a label that it must have or nothing -> head and labels of the record, which is gone; nil for none.

With ``ANYWAY`` behind that, something is written for none too, and the head is empty: what replicas confirm of it they
confirm of what was written before, so a revocation that was not confirmed can be made again.
"""

_APPLY: Final = r"""
local proof, now, seen, largest, bump, expects, sets, deletes, adds, labels, flags, size, deadlines_size, soon =
  struct.unpack('>c32i8i8I4BI2I2I2I2I2BI4I4i8', ARGV[2])
local named = expects + sets + deletes + adds
local found = redis.call('HMGET', KEYS[1], 'h', unpack(ARGV, 3, 2 + named))
local head = found[1]
if not head then return GONE end
if #head < 113 or string.byte(head) ~= 1 then return SLOW end
local version, _, was_seen, _, _, was_soon, absolute, own, idle, old_size, old_deadlines =
  struct.unpack('>i8i8i8i8i8i8i8i8i8I4I4', head, 2)
if not (now < absolute and now < own and now < idle) then return SLOW end
if string.sub(head, 82, 113) ~= proof then return GONE end
if version < 1 or version > 2^52 then return SLOW end

-- What is there already: what is expected of it, what it leaves, and what increments come to.
local write, sums = {'h', head}, {}
if named > 0 then
  if old_size == 4294967295 or now >= was_soon then return SLOW end
  local values, first_add = 2 + named, expects + sets + deletes
  size, deadlines_size = size + old_size, deadlines_size + old_deadlines
  for i = 1, named do
    local name, text, deadline = ARGV[2 + i], found[1 + i], nil
    if text and old_deadlines > 0 then
      local place = string.find(text, '\n', 1, true)
      if place then text, deadline = string.sub(text, 1, place - 1), string.sub(text, place + 1) end
    end
    if i <= expects then
      if (text or '') ~= ARGV[values + i] then return SLOW end
    else
      if text then
        size = size - #name - #text - 1
        if deadline then deadlines_size = deadlines_size - #name - #deadline - 1 end
      end
      if i <= expects + sets then
        local value = ARGV[values + i]
        if string.byte(value, -1) == 10 then -- the key keeps its deadline
          if deadline then
            value = value .. deadline
            deadlines_size = deadlines_size + #name + #deadline + 1
          else
            value = string.sub(value, 1, -2)
          end
        end
        write[#write + 1] = name
        write[#write + 1] = value
      elseif i > first_add then
        text = text or '0'
        if #text > 17 or not (text == '0' or string.find(text, '^%-?[1-9]%d*$')) then return SLOW end
        local value = tonumber(text)
        local sum = value + tonumber(ARGV[values - deletes + i])
        if not (math.abs(value) < 2^53 and math.abs(sum) < 2^53) then return SLOW end
        sum = string.format('%.0f', sum)
        sums[#sums + 1] = sum
        size = size + #name + #sum + 1
        if deadline then
          deadlines_size = deadlines_size + #name + #deadline + 1
          sum = sum .. '\n' .. deadline
        end
        write[#write + 1] = name
        write[#write + 1] = sum
      end
    end
  end
  local total = (size > 0 and size + 1 or 2) + (deadlines_size > 0 and deadlines_size + 2 or 0)
  if total > largest then return SLOW end
  if was_soon < soon then soon = was_soon end
  if deadlines_size == 0 then soon = 2^62 end
else
  size, deadlines_size, soon = old_size, old_deadlines, was_soon
end

-- The new head. What does not change is copied, for a number of 64 bits would not be exact here.
local seen8, authenticated8, grace8 = string.sub(head, 18, 25), string.sub(head, 26, 33), string.sub(head, 34, 41)
local own8, idle8, proofs = string.sub(head, 58, 65), string.sub(head, 66, 73), string.sub(head, 82)
if was_seen < seen then seen8 = string.sub(ARGV[2], 41, 48) end
if flags > 0 then
  if flags % 2 >= 1 then own8 = string.sub(ARGV[2], 81, 88) end
  if flags % 4 >= 2 then idle8 = string.sub(ARGV[2], 89, 96) end
  if flags % 8 >= 4 then authenticated8 = string.sub(ARGV[2], 97, 104) end
  if flags >= 8 then
    grace8, proofs = string.sub(ARGV[2], 137, 144), string.sub(ARGV[2], 105, 136) .. proof
  end
end
version = version + bump
write[2] = string.sub(head, 1, 1) .. struct.pack('>i8', version) .. string.sub(head, 10, 17) .. seen8
  .. authenticated8 .. grace8 .. struct.pack('>i8', soon) .. string.sub(head, 50, 57) .. own8 .. idle8
  .. struct.pack('>I4I4', size, deadlines_size) .. proofs
"""

_LABELS: Final = r"""
-- The new labels.
if labels > 0 then
  before = redis.call('HGET', KEYS[1], 'l') or ''
  after = before
  local first = 3 + named + expects + sets + adds
  local wanted = ARGV[first + 2 * labels]
  if wanted and not has(before, wanted) then return ELSEWHERE end
  for i = first, first + 2 * labels - 1, 2 do
    after = relabelled(after, ARGV[i], ARGV[i + 1])
  end
  if after ~= before and after ~= '' then
    write[#write + 1] = 'l'
    write[#write + 1] = after
  end
end

-- What the server and the indexes are told once all is written.
function tell()
  local ended = math.min(absolute, own, idle)
  own, idle = struct.unpack('>i8i8', own8 .. idle8)
  local ends = math.min(absolute, own, idle)
  if flags % 4 > 0 then
    expire(KEYS[1], ends - now)
    if ends < ended then
      plan(handle_of(KEYS[1]), ends, now)
    elseif index ~= '' then
      prolong(redis.call('HGET', KEYS[1], 'l') or '', ends - now)
    end
  end
  if labels > 0 then
    if after == '' then redis.call('HDEL', KEYS[1], 'l') end
    reindex(handle_of(KEYS[1]), before, after, ends - now)
  end
end
"""

_WRITE: Final = r"""
-- Nothing has been written so far. A server without memory refuses the first of these, and no other.
redis.call('HSET', KEYS[1], unpack(write))
if deletes > 0 then
  redis.call('HDEL', KEYS[1], unpack(ARGV, 3 + expects + sets, 2 + expects + sets + deletes))
end
if tell then tell() end
if labels > 0 or adds > 0 then
  return {version, before, after, string.format('%.0f', absolute - now), unpack(sums)}
end
return version
"""

# What most calls need nothing of is in a branch: to define these functions takes longer than to write a few fields. So
# the rest takes the head apart by itself.
APPLY: Final = Script(
    _FIRST,
    _ANSWERS,
    _APPLY,
    "local before, after, tell = '', '', nil",
    "if labels > 0 or flags % 4 > 0 then",
    *(EXPIRY, INDEX, DUE, _LABELS),
    "end",
    _WRITE,
)
"""index, the call, names, values, labels in pairs, and a label that the record must have or nothing at all.

The answer is the version, or, with labels or increments, a list of it, the labels before and after, how many
milliseconds the record may live, and the sums; or ``GONE``, ``SLOW``, or ``ELSEWHERE`` if it has not that label.
"""

SWAP: Final = Script(
    _FIRST,
    EXPIRY,
    INDEX,
    DUE,
    """
if redis.call('HGET', KEYS[1], 'h') ~= ARGV[2] then return 0 end
local now, labels, gone = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local before = redis.call('HGET', KEYS[1], 'l') or ''
redis.call('HSET', KEYS[1], 'h', ARGV[3])
for first = 7 + gone, #ARGV, 1000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
for first = 7, 6 + gone, 1000 do
  redis.call('HDEL', KEYS[1], unpack(ARGV, first, math.min(first + 999, 6 + gone)))
end
if labels == '' then redis.call('HDEL', KEYS[1], 'l') else redis.call('HSET', KEYS[1], 'l', labels) end
local handle, ends = handle_of(KEYS[1]), ends_of(ARGV[3])
expire(KEYS[1], ends - now)
reindex(handle, before, labels, ends - now)
prolong(labels, ends - now)
plan(handle, ends, now)
return 1
""",
)
"""index, head before, head after, now, labels, how many names to remove, these, names and values -> 1, or 0 if the head
is another."""

SWEEP: Final = Script(
    _FIRST,
    INDEX,
    DUE,
    """
local before, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local found, over = overdue(before, most)
for _, handle in ipairs(over) do
  local key = key_of(handle)
  erase(key, redis.call('HGET', key, 'l') or '')
end
return {found, over}
""",
)
"""index, a time, how many at most -> how many were looked at, and the handles of those that ended before that time.

These are gone.
"""

FORGET: Final = Script(
    "local index = ''",
    INDEX,
    """
for i = 1, #ARGV, 2 do
  local number = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if number and tonumber(number) == tonumber(ARGV[i + 1]) then leave(KEYS[1], ARGV[i]) end
end
return 1
""",
)
"""handles and their numbers in turn: those that still have it leave the index."""

PEND: Final = Script(
    "local index = ''",
    INDEX,
    """
local time, kept = redis.call('TIME'), redis.call('PTTL', KEYS[1])
local at = string.format('%.0f', -(time[1] * 1000000 + time[2]))
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], at, ARGV[i]) end
keep(KEYS[1], math.max(tonumber(ARGV[1]), 0) + 60000, kept)
return redis.call('ZSCORE', KEYS[1], LAST) or '0'
""",
)
"""how long the records may live, names of entries to come -> the last number drawn.

Their own numbers are negative: since when they are under way.
"""

NUMBER: Final = Script(
    "local index = ''",
    INDEX,
    """
local since, time = tonumber(ARGV[1]), redis.call('TIME')
local until_ = time[1] * 1000000 + time[2] - tonumber(ARGV[2])
for i = 3, #ARGV, 3 do
  if ARGV[i + 2] ~= '' then
    local number = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if not number or tonumber(number) <= since then enter(KEYS[1], ARGV[i], tonumber(ARGV[i + 2])) end
  end
  local begun = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  if begun and -tonumber(begun) <= until_ then redis.call('ZREM', KEYS[1], ARGV[i + 1]) end
end
return 1
""",
)
"""a number, an age, then handle, name of the entry to come and how long it may live, or nothing, in turn.

Each handle that may live gets a number, unless it has one behind the given number. Entries to come of that age go.
"""
