-- Find entries that were delivered and that nobody holds (somebody acknowledged them by hand, or removed their
-- consumer), and give them to this worker. What they are, their claim finds out.
-- KEYS  1 stream
-- ARGV  1 group  2 worker  3 entries to look at
-- Gives how many there were
local stream, group, worker, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local last
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, fields in ipairs(groups.err and {} or groups) do
  local g = {}
  for i = 1, #fields, 2 do
    g[fields[i]] = fields[i + 1]
  end
  if g.name == group and redis.call('XLEN', stream) > g.pending then
    last = g['last-delivered-id']
  end
end
if not last then
  return 0
end

local found, from = 0, '-'
local function look(to)
  local entry = redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
  if entry then
    redis.call('XCLAIM', stream, group, worker, 0, entry[1], 'FORCE', 'JUSTID')
    found = found + 1
  end
end
local pending = redis.call('XPENDING', stream, group, '-', '+', most)
for _, held in ipairs(pending) do
  look('(' .. held[1])
  from = '(' .. held[1]
end
if #pending < most then
  look(last)
end
return found
