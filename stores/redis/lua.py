"""What the scripts of a RedisStore share: Lua functions for the server's own expiry and for the indexes.

A script that uses them begins with the name of the indexes, ``local index``. On a single server they keep the indexes
in the same step as the record; on a cluster, where an index lies elsewhere, that name is empty and they do nothing.
"""

from hashlib import sha1
from typing import Final

__all__ = ["DUE", "EXPIRY", "INDEX", "Script"]


class Script:
    """A script's text, and the name that the server gives it."""

    def __init__(self, *parts: str) -> None:
        """Join the parts."""
        self.text = "\n".join(parts).encode("latin-1")
        self.name = sha1(self.text, usedforsecurity=False).hexdigest().encode()


EXPIRY: Final = """
-- The server's own expiry is only for what nobody asks for any more: a minute after our deadline, whatever its clock.
local function expire(key, left)
  if left >= 2^52 then
    redis.call('PERSIST', key)
  else
    redis.call('PEXPIRE', key, string.format('%.0f', math.max(left, 0) + 60000))
  end
end
"""

# The last number drawn lies in the index itself, under a name that no handle has. It begins with the time, so that an
# index which was empty in between goes on behind the numbers it had.
INDEX: Final = r"""
local LAST = '\255'

local function index_of(pair)
  return index .. redis.sha1hex(pair)
end

local function handle_of(key)
  return string.sub(key, #index, -2)
end

local function key_of(handle)
  return string.sub(index, 1, -3) .. '{' .. handle .. '}'
end

-- An index lives as long as what it names, and longer once somebody had it so: `kept` is what PTTL said of it before.
local function keep(key, left, kept)
  if left >= 2^52 then
    redis.call('PERSIST', key)
  elseif kept ~= -1 and left > kept then
    redis.call('PEXPIRE', key, string.format('%.0f', left))
  end
end

local function leave(key, handle)
  if redis.call('ZREM', key, handle) == 1 and redis.call('ZCARD', key) == 1 then
    redis.call('DEL', key)
  end
end

-- What the server removed by itself is forgotten by the entries to come, which look at two each. They look anywhere:
-- behind old sessions that live on, too. So an index has hardly more entries of dead records than of live ones.
local function tidy(key)
  for _, handle in ipairs(redis.call('ZRANDMEMBER', key, 2)) do
    if handle ~= LAST and redis.call('EXISTS', key_of(handle)) == 0 then redis.call('ZREM', key, handle) end
  end
end

local function enter(key, handle, left)
  local last, kept = tonumber(redis.call('ZSCORE', key, LAST) or nil), redis.call('PTTL', key)
  if not last then
    local time = redis.call('TIME')
    last = time[1] * 1000000 + time[2]
  end
  local number = string.format('%.0f', last + 1)
  redis.call('ZADD', key, number, LAST, number, handle)
  keep(key, math.max(left, 0) + 60000, kept)
  if index ~= '' then tidy(key) end
end

local function has(labels, pair)
  return string.find('\n' .. labels .. '\n', '\n' .. pair .. '\n', 1, true)
end

local function relabelled(labels, name, value)
  local kept, is_there = {}, value == ''
  for pair in string.gmatch(labels, '[^\n]+') do
    if string.sub(pair, 1, #name) ~= name then
      kept[#kept + 1] = pair
    elseif not is_there then
      kept[#kept + 1], is_there = name .. value, true
    end
  end
  if not is_there then kept[#kept + 1] = name .. value end
  return table.concat(kept, '\n')
end

local function reindex(handle, before, after, left)
  if index == '' or before == after then return end
  for pair in string.gmatch(before, '[^\n]+') do
    if not has(after, pair) then leave(index_of(pair), handle) end
  end
  for pair in string.gmatch(after, '[^\n]+') do
    if not has(before, pair) then enter(index_of(pair), handle, left) end
  end
end
"""

# One more index says when to look whether a record has expired: at its deadline of when it was entered. That may have
# moved on since, so whoever looks enters it anew; a deadline that comes nearer enters it at once. What the server
# removes by itself is forgotten by the records to come, two for each, so the index never outgrows what lives. It ends a
# day after the last that it names.
DUE: Final = r"""
local DAY = 86400000

-- The earliest of a head's three deadlines. What unpack returns behind them is where it ended.
local function ends_of(head)
  local absolute, own, idle = struct.unpack('>i8i8i8', head, 50)
  return math.min(absolute, own, idle)
end

local function plan(handle, ends, now)
  if index == '' then return end
  local due = index .. 'due'
  local kept = redis.call('PTTL', due)
  if ends - now < 2^52 and type(redis.pcall('ZADD', due, string.format('%.0f', ends), handle)) ~= 'table' then
    keep(due, math.max(ends - now, 0) + DAY, kept)
  else -- it never ends; or there is no memory: nothing is entered then, and the server's own expiry is enough
    redis.call('ZREM', due, handle)
  end
end

-- Has the indexes that name a record live as long as it may live now.
local function prolong(labels, left)
  if index == '' then return end
  left = math.max(left, 0)
  for pair in string.gmatch(labels, '[^\n]+') do
    local key = index_of(pair)
    keep(key, left + 60000, redis.call('PTTL', key))
  end
  if left < 2^52 then keep(index .. 'due', left + DAY, redis.call('PTTL', index .. 'due')) end
end

local function erase(key, labels)
  local handle = handle_of(key)
  redis.call('DEL', key)
  if index ~= '' then redis.call('ZREM', index .. 'due', handle) end
  reindex(handle, labels, '', 0)
end

local function overdue(before, most)
  local due, over = index .. 'due', {}
  local found = redis.call('ZRANGEBYSCORE', due, '-inf', string.format('(%.0f', before), 'LIMIT', 0, most)
  for _, handle in ipairs(found) do
    local head, ends = redis.pcall('HGET', key_of(handle), 'h'), nil
    if type(head) == 'string' then
      ends = before + 3600000 -- what a newer release wrote it looks at itself
      if #head >= 113 and string.byte(head) == 1 then
        ends = ends_of(head)
      end
    end
    if ends and ends < before then
      over[#over + 1] = handle
    elseif ends then
      plan(handle, ends, before)
    else
      redis.call('ZREM', due, handle)
    end
  end
  return #found, over
end
"""
