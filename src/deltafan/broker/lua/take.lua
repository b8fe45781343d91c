-- Read waiting entries, the first streams first, at most `count` in all.
-- KEYS  the queue's streams in order
-- ARGV  1 group  2 worker  3 count
-- Gives {{stream's place from 1, entry, {field, value, …}}, …}
local left = tonumber(ARGV[3])
local taken = {}
local failure
for place, stream in ipairs(KEYS) do
  local reply = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', stream, '>')
  if reply and reply.err then
    failure = failure or reply
  elseif reply and reply[1] then
    for _, item in ipairs(reply[1][2]) do
      taken[#taken + 1] = {place, item[1], item[2]}
      left = left - 1
    end
    if left == 0 then break end
  end
end
-- One stream that cannot be read (no group, a key of another type) does not stop the others.
return #taken == 0 and failure or taken
