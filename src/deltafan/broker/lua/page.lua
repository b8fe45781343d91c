-- Read a log's entries: as many as fit into a number of bytes, one at least. A page is held for whom it is read for, for
-- as long as that one takes it, so that it must be bounded whatever is in the log.
-- KEYS  1 log
-- ARGV  1 start, as for XRANGE  2 entries at most  3 bytes
-- Gives {more 0|1, id, event, id, event, …}: more is 0 where the log ends after these
local STEP = 50 -- entries looked at in one go, some of them in vain
local found, start, left, size = {1}, ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
while left > 0 do
  local count = math.min(STEP, left)
  local rows = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', count)
  for _, row in ipairs(rows) do
    local event = row[2][1] == 'e' and row[2][2] or ''
    size = size - #event
    if size < 0 and #found > 1 then
      return found
    end
    found[#found + 1] = row[1]
    found[#found + 1] = event
    start = '(' .. row[1]
  end
  if #rows < count then
    found[1] = 0
    return found
  end
  left = left - count
end
return found
